"""How far a task is, on stderr: a bar on a terminal, elsewhere a line of the log every ten seconds."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

_REDRAW_S: Final = 1.0
_FIRST_LINE_S: Final = 2.0
_LINE_S: Final = 10.0

_log = logging.getLogger(__name__)


def no_bars() -> None:
    """Keep libraries from drawing bars of their own into a log; to be called before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


@contextmanager
def progress(name: str, total: int, *, done: int = 0, unit: str = "rows") -> Iterator[Callable[[int], Any]]:
    """Show how much of `total` is done, the rate, and the time left; yields the function that counts finished rows.

    A thread draws it, so the clock moves on while no row is finished, for instance while a model loads. A task of less
    than two seconds leaves no line behind.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    on_terminal, started, ended = sys.stderr.isatty(), time.monotonic(), Event()
    figures = f"{{n:,}} of {{total:,}} {unit}, {{rate_noinv_fmt}}, {{elapsed}} so far, {{remaining}} left"

    def keep_showing() -> None:
        wait_s = _REDRAW_S if on_terminal else _FIRST_LINE_S
        while not ended.wait(wait_s):
            if on_terminal:
                bar.refresh()
            else:
                _log.info("%s", bar)
                wait_s = _LINE_S

    with ExitStack() as stack:
        if on_terminal:
            stack.enter_context(logging_redirect_tqdm())  # writes log lines above the bar
            file, layout = sys.stderr, "{desc} {percentage:3.0f}%|{bar:20}| " + figures
        else:
            file, layout = stack.enter_context(Path(os.devnull).open("w")), "{desc}: " + figures
        bar = tqdm(desc=name, total=total, initial=done, unit=f" {unit}", file=file, bar_format=layout, disable=False)
        stack.enter_context(bar)
        thread = Thread(target=keep_showing, daemon=True)
        thread.start()
        try:
            yield bar.update
        finally:
            ended.set()
            thread.join()
            bar.leave = time.monotonic() - started > _FIRST_LINE_S
            if bar.leave and not on_terminal:
                _log.info("%s", bar)
