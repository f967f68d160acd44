"""Calls a function of the user's, and serves such calls in a process of its own (`main`).

Messages are pickled: in by standard input, first a function, then lists of rows; out by standard output, one answer to
each. What the function prints goes to stderr. The process ends with its owner: the end of standard input kills it and
all that it has started. A timer that needs no Python ends it if the function hangs where no other thread can run.
"""

import faulthandler
import hashlib
import importlib
import importlib.util
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from pipeline.errors import ConfigError

_GRACE_S: Final = 10.0

Row = dict[str, Any]


class BadAnswer(Exception):  # noqa: N818 - what a function did, never seen by a user
    """What a function did instead of giving its numbers; names no value of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function, what it is called with beside the rows, and how long a call may take.

    digest: of the file of its module; None for any.
    """

    function: str
    arguments: Mapping[str, Any]
    digest: str | None
    timeout_s: float

    def load(self) -> "Loaded":
        """Import the function. Raises a ConfigError if there is none, or its file is another one than `digest` says."""
        module, name = self.function.split(":")
        found = module_digest(self.function)
        if self.digest not in (None, found):
            raise ConfigError(
                f"reward.function {self.function}: the file of {module} is another one here than where the run began, "
                "or has changed since. Install the same version on every node; for a changed one use another output."
            )
        try:
            function = getattr(importlib.import_module(module), name, None)
        except Exception as error:  # noqa: BLE001 - a module of the user's may raise anything
            raise ConfigError(f"reward.function: {module} cannot be imported: {_where(error, module)}.") from None
        if not callable(function):
            raise ConfigError(f"reward.function: {module} has no function {name}. Name one at its top level.")
        return Loaded(call=self, function=function)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A function, ready to be called."""

    call: Call
    function: Callable[..., Any]

    def __call__(self, rows: Sequence[Row]) -> list[float | None]:
        """A number for each row, or None. Raises BadAnswer if the function fails or gives anything else."""
        try:
            found = self.function(list(rows), **self.call.arguments)
            values = None if isinstance(found, (str, bytes, Mapping)) else list(found)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it may raise anything
            raise BadAnswer(f"raised {_where(error, self.call.function.split(':')[0])}") from None
        if values is None or len(values) != len(rows):
            got = type(found).__name__ if values is None else f"{len(values)} values"
            raise BadAnswer(f"gave {got} for {len(rows)} rows; wanted a list with a number for each")
        return [_number(value) for value in values]


def module_digest(function: str) -> str:
    """Digest of the file of a function's module. Raises a ConfigError if there is no such module, or it has no file."""
    module = function.split(":", maxsplit=1)[0]
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # noqa: BLE001 - finding a module imports the packages above it
        raise ConfigError(f"reward.function: {module} cannot be found: {_where(error, module)}.") from None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(
            f"reward.function: there is no module {module} in a file here. Install its package on every node, or set "
            "PYTHONPATH to the folder that holds it."
        )
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _where(error: BaseException, module: str) -> str:
    """The class of an error and the line of the module that it comes from. Its text may quote a row."""
    file = getattr(sys.modules.get(module), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if frame.filename == file]
    return type(error).__name__ + (f" at line {lines[-1].lineno} of {Path(lines[-1].filename).name}" if lines else "")


def _number(value: Any) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except Exception:  # noqa: BLE001 - a value of the user's may do anything
        raise BadAnswer(f"gave a {type(value).__name__}; wanted a number or None") from None


def main() -> None:
    """Serve calls until standard input ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, messages), daemon=True).start()
    call: Call = messages.get()
    try:
        loaded = call.load()
    except ConfigError as error:
        _send(answers, error)
        return
    _send(answers, None)
    while True:
        rows = messages.get()
        faulthandler.dump_traceback_later(call.timeout_s + _GRACE_S, exit=True, file=2)
        try:
            found: Any = loaded(rows)
        except BadAnswer as error:
            found = error
        faulthandler.cancel_dump_traceback_later()
        _send(answers, found)


def _receive(requests: IO[bytes], messages: "queue.SimpleQueue[Any]") -> None:
    try:
        while True:
            messages.put(pickle.load(requests))  # noqa: S301 - our own process wrote it
    finally:
        os.killpg(0, signal.SIGKILL)


def _send(answers: IO[bytes], message: Any) -> None:
    pickle.dump(message, answers)
    answers.flush()
