"""How a function of the user's is called: in this process, or in one of its own that is ended when it hangs."""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any, Final, Protocol

from pipeline.drops import Reason
from pipeline.errors import AlignpotError, ConfigError
from pipeline.models.time_limit import limited
from pipeline.rewards.worker import BadAnswer, Call, Row

_SERVE: Final = "from pipeline.rewards.worker import main; main()"
_LOAD_S: Final = 600.0  # to import a module, which may load a model


class CallFailed(Exception):  # noqa: N818 - control flow, never seen by a user
    """A call gave no numbers: why its rows are dropped if it is one, and what happened, without a value of a row."""

    def __init__(self, reason: Reason, words: str) -> None:
        super().__init__(words)
        self.reason = reason


class Caller(Protocol):
    """Calls one function."""

    def __call__(self, rows: Sequence[Row]) -> list[float | None]:
        """A number for each row, or None. Raises CallFailed."""

    def close(self) -> None:
        """Free what it holds."""


class InProcess:
    """Calls a function in this process. A time limit ends Python code; code in C finishes first.

    Raises a ConfigError if the function cannot be loaded.
    """

    def __init__(self, call: Call) -> None:
        self._loaded = call.load()

    def __call__(self, rows: Sequence[Row]) -> list[float | None]:
        """As Caller."""
        limit_s = self._loaded.call.timeout_s
        try:
            return limited(lambda: self._loaded(rows), limit_s)
        except BadAnswer as error:
            raise CallFailed(Reason.REWARD_ERROR, str(error)) from None
        except TimeoutError:
            raise _took_longer(limit_s) from None

    def close(self) -> None:
        """Nothing is held."""


class Isolated:
    """Calls a function in a process of its own. If that hangs or dies, the next call starts another.

    Raises a ConfigError if the function cannot be loaded.
    """

    def __init__(self, call: Call, num_threads: int) -> None:
        self._call, self._num_threads = call, num_threads
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def __call__(self, rows: Sequence[Row]) -> list[float | None]:
        """As Caller."""
        process = self._process or self._start()
        try:
            found = _asked(process, list(rows), self._call.timeout_s)
        except TimeoutError:
            self.close()
            raise _took_longer(self._call.timeout_s) from None
        except OSError:
            self.close()
            raise CallFailed(Reason.REWARD_ERROR, f"ended its process ({_ending(process.returncode)})") from None
        if isinstance(found, BadAnswer):
            raise CallFailed(Reason.REWARD_ERROR, str(found))
        values: list[float | None] = found
        return values

    def close(self) -> None:
        """Kill the process and whatever it has started."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was left to write has no reader
                    pipe.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109 - what "" means there
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(self._num_threads)},
            start_new_session=True,
        )
        try:
            refused = _asked(process, self._call, _LOAD_S)
        except (TimeoutError, OSError) as error:
            self.close()
            ending = "was not done" if isinstance(error, TimeoutError) else f"ended ({_ending(process.returncode)})"
            raise AlignpotError(
                f"reward.function {self._call.function}: the process that imports it {ending}. Its log stands above."
            ) from None
        if isinstance(refused, ConfigError):
            self.close()
            raise refused
        return process


def _asked(process: "subprocess.Popen[bytes]", message: Any, limit_s: float) -> Any:
    """The answer to a message. Raises a TimeoutError, or an OSError if the process has died."""
    assert process.stdin is not None  # noqa: S101 - they are pipes
    assert process.stdout is not None  # noqa: S101
    pickle.dump(message, process.stdin)
    process.stdin.flush()
    return _received(process.stdout, limit_s)


def _received(pipe: IO[bytes], limit_s: float) -> Any:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if not poll.poll(limit_s * 1000):
        raise TimeoutError
    try:
        return pickle.load(pipe)  # noqa: S301 - our own process wrote it
    except (EOFError, pickle.UnpicklingError):
        raise BrokenPipeError from None


def _took_longer(limit_s: float) -> CallFailed:
    return CallFailed(Reason.REWARD_TIMEOUT, f"took longer than reward.timeout_s, {limit_s:g} s")


def _ending(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
