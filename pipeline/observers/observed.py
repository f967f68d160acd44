"""The seam between commands and who is told of them.

    with observed("score", place, config) as told:
        ...                              errors from here on are told too
        told.add(tell_sources, ...)      what it reads and is about to write
        told.begin()
        ...
        told.add(tell_scored, ...)       what came of it

If nobody is to be told, all of this does nothing. Whatever goes wrong in telling is a warning.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Concatenate, Final, ParamSpec

from pipeline.config import carries_credentials
from pipeline.errors import AlignpotError
from pipeline.observers.facts import Facts
from pipeline.observers.lineage import Lineage, State
from pipeline.observers.track import Tracker, told, tracker_of
from pipeline.progress import watched
from pipeline.shown import shown
from pipeline.termination import is_terminated, raise_if_terminated

P = ParamSpec("P")
_IN_PART: Final = "part of what the run did is left out of lineage and tracking"
_NO_LINEAGE: Final = "lineage cannot be sent, and is left out from here on"
_ENDS: Final[Mapping[State, str]] = {"COMPLETE": "complete", "FAIL": "failed", "ABORT": "aborted"}

_log = logging.getLogger(__name__)


class Observed:
    """A command while it runs, and who is told of it."""

    def __init__(self, facts: Facts, lineage: Lineage | None, tracker: Tracker | None) -> None:
        self._facts, self._lineage, self._tracker = facts, lineage, tracker
        self._has_begun = self._has_ended = False

    def add(self, tell: Callable[Concatenate[Facts, P], None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Let `tell` write into the facts."""
        if self._lineage is not None or self._tracker is not None:
            self._guarded(_IN_PART, tell, self._facts, *args, **kwargs)

    def begin(self) -> None:
        """Say that the work begins. Its inputs, outputs and fingerprint are known."""
        self._has_begun = True
        self._emit("START")

    def running(self, name: str, done: int, total: int) -> None:
        """Say how many rows are done."""
        if self._has_begun and self._lineage is not None:
            self._guarded(_NO_LINEAGE, self._lineage.running, self._facts, name, done, total)

    def end(self, state: State, error: str | None = None) -> None:
        """Say how it ended."""
        self._has_ended = True
        if not self._has_begun:
            self.begin()
        self._emit(state, error)
        if self._lineage is not None:
            self._guarded(_NO_LINEAGE, self._lineage.close)
        if self._tracker is not None:
            tracker, facts = self._tracker, self._facts
            self._guarded("run.track failed", lambda: tracker(told(facts, _ENDS[state], error)))

    def _emit(self, state: State, error: str | None = None) -> None:
        if self._lineage is not None:
            self._guarded(_NO_LINEAGE, self._lineage.emit, state, self._facts, error)

    def _guarded(self, what: str, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            call(*args, **kwargs)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - those of others may raise anything
            if not self._has_ended:
                raise_if_terminated()  # the error may be that of a signal
            words = f"{type(error).__name__}: {shown(error, 300)}"
            words = type(error).__name__ if carries_credentials(str(error)) else words
            _log.warning("%s (%s). The run goes on.", what, words)
            if what == _NO_LINEAGE:
                self._lineage = None


@contextmanager
def observed(
    command: str, place: str, config: Mapping[str, Any], track: str | None = None, *, lineage: bool = True
) -> Iterator[Observed]:
    """Tell of a command: to a lineage service, if one is set up, and to the function `track`.

    place: path or URL of what it makes in the end. config: resolved, as JSON values. lineage: whether what
    it makes is kept.

    Raises:
        ConfigError: there is no such function.
    """
    tracker = None if track is None else tracker_of(track)
    seen = Observed(Facts(command=command, place=place, config=config), Lineage.find() if lineage else None, tracker)
    try:
        with watched(seen.running):
            yield seen
    except BaseException as error:
        is_stopped = is_terminated() or not isinstance(error, Exception)
        seen.end("ABORT" if is_stopped else "FAIL", _words(error))
        raise
    seen.end("COMPLETE")


def _words(error: BaseException) -> str:
    """An error without what may be private: texts of rows stand in errors of libraries, never in ours."""
    if not isinstance(error, Exception):
        return "stopped"
    text = f"{type(error).__name__}: {error}"
    is_ours = isinstance(error, AlignpotError)
    return text if is_ours and not carries_credentials(text) else type(error).__name__
