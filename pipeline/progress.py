"""How far a task is, on stderr: a bar on a terminal, elsewhere a line of the log every ten seconds."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from typing import Final

_REDRAW_S: Final = 1.0
_LINE_S: Final = 10.0
_SHORT_S: Final = 2.0
_BAR_LENGTH: Final = 20

_log = logging.getLogger(__name__)
_watchers: list[Callable[[str, int, int], None]] = []


def no_bars() -> None:
    """Keep libraries from drawing bars of their own into a log; to be called before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


@contextmanager
def watched(watcher: Callable[[str, int, int], None]) -> Iterator[None]:
    """Tell `watcher` of each progress in the meantime: name of the task, how much is done, and how much there is."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@contextmanager
def progress(name: str, total: int, *, done: int = 0, unit: str = "rows") -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done, the rate, and the time left; yields the function that counts finished rows.

    A thread shows it, so the clock moves on while no row is finished, for instance while a model loads. A task of less
    than two seconds leaves no line behind.
    """
    task, ended = _Task(name, total, done, unit), Event()
    thread = Thread(target=_bar if sys.stderr.isatty() else _lines, args=(task, ended), daemon=True)
    thread.start()
    try:
        yield task.count
    finally:
        ended.set()
        thread.join()


def _bar(task: "_Task", ended: Event) -> None:
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    # Lines of the log go above the bar.
    with logging_redirect_tqdm(), tqdm(bar_format="{desc}", file=sys.stderr, disable=False) as line:
        while not ended.wait(_REDRAW_S):
            line.set_description_str(f"{task.bar()} {task}")
        line.leave = task.seconds() > _SHORT_S
        line.set_description_str(f"{task.bar()} {task}", refresh=line.leave)


def _lines(task: "_Task", ended: Event) -> None:
    wait_s = _SHORT_S
    while not ended.wait(wait_s):
        _log.info("%s", task)
        wait_s = _LINE_S
    if task.seconds() > _SHORT_S:
        _log.info("%s", task)


class _Task:
    """How much of a task is done, and for how long it has been at work."""

    def __init__(self, name: str, total: int, done: int, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._started = time.monotonic()
        self._before = self._done = done
        self._first: tuple[float, int] | None = None
        """When the first rows were finished, and how many were done then."""

    def count(self, num_finished: int) -> None:
        """Take up rows that were finished just now."""
        self._done += num_finished
        if self._first is None:
            self._first = time.monotonic(), self._done
        for watcher in _watchers:
            watcher(self._name, self._done, self._total)

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def bar(self) -> str:
        """The share that is done, as a bar."""
        filled = _BAR_LENGTH * self._done // max(self._total, 1)
        return "█" * filled + "░" * (_BAR_LENGTH - filled)

    def __str__(self) -> str:
        counts = f"{self._name}: {self._done:,} of {self._total:,} {self._unit}, {_clock(self.seconds())} so far"
        # The first rows wait for models to load, so a rate of the rest says more of what is to come.
        since, before = self._first or (0.0, self._done)
        if self._done == self._total:
            since, before = self._started, self._before
        if self._done == before:
            return counts
        rate = (self._done - before) / (time.monotonic() - since)
        return f"{counts}, {rate:,.3g} {self._unit} a second, {_clock((self._total - self._done) / rate)} left"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
