"""How far a task is, on stderr: a live view on a terminal, elsewhere a line of the log every 30 seconds."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Thread
from typing import Any, Final, Protocol

_REDRAW_S: Final = 1.0
_LINE_S: Final = 30.0
_SHORT_S: Final = 2.0
_BAR_LENGTH: Final = 20
_WORTH_TELLING: Final = 0.05  # workers that are busy on average
_NO_VIEW: Final = "TQDM_DISABLE"

_log = logging.getLogger(__name__)
_watchers: list[Callable[[str, int, int], None]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a task counts beside its rows, since it was started.

    Attributes:
        num_shards: shards that are finished.
        num_tokens: prompt and response tokens of their rows.
        busy_s: seconds that the workers of each stage spent on them.
        dropped: rows by the reason they were dropped for.
    """

    num_shards: int
    num_tokens: int
    busy_s: Mapping[str, float]
    dropped: Mapping[str, int]


class Count(Protocol):
    """Counts finished rows; figures: of the task up to now."""

    def __call__(self, num_finished: int, figures: Figures | None = None) -> None:
        """Take them up."""


def no_bars() -> None:
    """Draw no live view, and keep libraries from drawing bars into a log; to be called before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault(_NO_VIEW, "1")


@contextmanager
def watched(watcher: Callable[[str, int, int], None]) -> Iterator[None]:
    """Tell `watcher` of each progress in the meantime: name of the task, how much is done, and how much there is."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@contextmanager
def progress(name: str, total: int, *, done: int = 0, unit: str = "rows") -> Iterator[Count]:
    """Show how much of `total` is done, the rate, and the time left; yields the function that counts finished rows.

    A thread shows it, so the clock moves on while no row is finished, for instance while a model loads. A task of less
    than two seconds leaves no line behind.
    """
    task, ended = _Task(name, total, done, unit), Event()
    is_live = sys.stderr.isatty() and not os.environ.get(_NO_VIEW)
    thread = Thread(target=_view if is_live else _lines, args=(task, ended), daemon=True)
    thread.start()
    try:
        yield task.count
    finally:
        ended.set()
        thread.join()


def _view(task: "_Task", ended: Event) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    terminal = sys.stderr

    def text() -> Text:
        return Text("\n".join(task.view()), no_wrap=True, overflow="ellipsis")

    # What goes to stdout may be read by another program, so it never passes through the view.
    with Live(console=Console(file=terminal), auto_refresh=False, redirect_stdout=False) as live:
        with _logged_to(sys.stderr, terminal):  # lines of the log go above the view
            while not ended.wait(_REDRAW_S):
                live.update(text(), refresh=True)
        live.transient = task.seconds() <= _SHORT_S
        live.update(text(), refresh=True)


@contextmanager
def _logged_to(stream: Any, former: Any) -> Iterator[None]:
    """Let the handlers that write to `former` write to `stream` in the meantime."""
    handlers = [
        handler
        for handler in logging.root.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is former
    ]
    for handler in handlers:
        handler.setStream(stream)
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(former)


def _lines(task: "_Task", ended: Event) -> None:
    wait_s = _SHORT_S
    while not ended.wait(wait_s):
        task.log()
        wait_s = _LINE_S
    if task.seconds() > _SHORT_S:
        task.log()


class _Task:
    """How much of a task is done, and for how long it has been at work."""

    def __init__(self, name: str, total: int, done: int, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._started = time.monotonic()
        self._before = self._done = done
        self._first: tuple[float, int, int] | None = None
        """When the first rows were finished, and how many rows and tokens were done then."""
        self._figures: Figures | None = None

    def count(self, num_finished: int, figures: Figures | None = None) -> None:
        """Take up rows that were finished just now."""
        self._done += num_finished
        self._figures = figures
        if self._first is None:
            self._first = time.monotonic(), self._done, figures.num_tokens if figures is not None else 0
        for watcher in _watchers:
            watcher(self._name, self._done, self._total)

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def log(self) -> None:
        """Write a line, and the same as fields for a log of JSON."""
        _log.info("%s", self, extra={"fields": self.fields()})

    def view(self) -> list[str]:
        """Lines for a terminal: a bar with the counts, then what else is known."""
        filled = _BAR_LENGTH * self._done // max(self._total, 1)
        bar = "█" * filled + "░" * (_BAR_LENGTH - filled)
        return [f"{bar} {self._counts()}", *(f"{' ' * _BAR_LENGTH} {line}" for line in self._beside())]

    def __str__(self) -> str:
        return "; ".join([self._counts(), *self._beside()])

    def fields(self) -> dict[str, Any]:
        """The figures as JSON values. Rates are null before they are known."""
        rate, token_rate = self._rates()
        found: dict[str, Any] = {
            "task": self._name,
            "done": self._done,
            "total": self._total,
            "unit": self._unit,
            "seconds": round(self.seconds(), 1),
            "per_second": rate,
            "seconds_left": (self._total - self._done) / rate if rate else None,
        }
        if (figures := self._figures) is None:
            return found
        beside = {"shards": figures.num_shards, "tokens_per_second": token_rate, "workers_busy": self._busy(figures)}
        return found | beside | {"dropped": dict(figures.dropped)}

    def _counts(self) -> str:
        parts = [f"{self._name}: {self._done:,} of {self._total:,} {self._unit}"]
        if self._figures is not None:
            num_shards = self._figures.num_shards
            parts.append("1 shard" if num_shards == 1 else f"{num_shards:,} shards")
        parts.append(f"{_clock(self.seconds())} so far")
        rate, token_rate = self._rates()
        if rate:
            parts.append(f"{rate:,.3g} {self._unit} a second")
            if token_rate:
                parts.append(f"{token_rate:,.0f} tokens a second")
            parts.append(f"{_clock((self._total - self._done) / rate)} left")
        return ", ".join(parts)

    def _rates(self) -> tuple[float | None, float | None]:
        """Rows and tokens a second.

        The first rows wait for models to load, so the rates of the rest say more of what is to come.
        """
        since, before, tokens_before = self._first or (0.0, self._done, 0)
        if self._done == self._total:
            since, before, tokens_before = self._started, self._before, 0
        if self._done == before:
            return None, None
        seconds = time.monotonic() - since
        num_tokens = self._figures.num_tokens if self._figures is not None else 0
        return (self._done - before) / seconds, (num_tokens - tokens_before) / seconds

    def _beside(self) -> Iterator[str]:
        if (figures := self._figures) is None:
            return
        busy = [f"{number:.1f} {stage}" for stage, number in self._busy(figures).items() if number >= _WORTH_TELLING]
        if busy:
            yield f"workers busy: {', '.join(busy)}"
        if figures.dropped:
            reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(figures.dropped.items()))
            yield f"dropped: {sum(figures.dropped.values()):,} ({reasons})"

    def _busy(self, figures: Figures) -> dict[str, float]:
        """How many workers of each stage were busy on average."""
        seconds = max(self.seconds(), 1e-9)
        return {stage: round(busy_s / seconds, 3) for stage, busy_s in figures.busy_s.items()}


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
