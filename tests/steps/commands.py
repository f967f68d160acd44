"""Commands of `alignpot` in process groups of their own, which tests kill and start again.

They are forked from a server that has imported what they need, since importing it is most of what a short command does.

On a machine with much beside it a local Ray may not come up in time. The command then ends with 75, which asks whoever
runs it to run it again: here as there.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from pipeline import cli
from pipeline.errors import TemporaryError

_MOST_TRIES = 4
_DEADLINE_S = 600
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([
    "datasets",
    "peft",
    "pipeline.on_ray.engine",
    "pipeline.commands",
    "pipeline.selfplay.rounds",
    "pipeline.models.logprobs",
    "pipeline.models.rewards",
    "transformers.models.llama.modeling_llama",
])  # fmt: skip


class Command(ForkServerProcess):
    """A process that runs a command line of `alignpot`, asked as a `Popen` is."""

    def poll(self) -> int | None:
        """How it ended, if it has: negative if by a signal."""
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """How it ended."""
        self.join(timeout)
        if self.exitcode is None:
            raise TimeoutError(f"{self.name} still runs after {timeout} s")
        return self.exitcode


def start(command: str, path: Path, before: Callable[[], None] | None = None) -> Command:
    """`alignpot COMMAND CONFIG`; what it prints goes beside the config. before: called first, in the process."""
    words = [command, str(path)]
    arguments = (words, path.with_suffix(".log"), dict(os.environ), before)
    process = Command(target=_run, args=arguments, name=" ".join(words))
    process.start()
    return process


def _run(words: list[str], log: Path, environment: Mapping[str, str], before: Callable[[], None] | None) -> None:
    os.setsid()
    if before is not None:
        before()
    os.environ.clear()
    # Ray read its mode of authentication when it was imported; one of the tests' own Ray would be news to it.
    os.environ.update({name: value for name, value in environment.items() if name != "RAY_AUTH_MODE"})
    with log.open("ab") as out:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(out.fileno(), stream.fileno())
    try:
        cli.main(words)
    finally:
        atexit._run_exitfuncs()  # as an interpreter of its own would, and a forked one does not


def started_until(command: str, path: Path, reached: Callable[[], bool]) -> Command:
    """A process of the command that still runs and has reached something."""
    deadline, tries = time.monotonic() + _DEADLINE_S, 1
    process = start(command, path)
    while not reached():
        if process.poll() == TemporaryError.exit_code and tries < _MOST_TRIES:
            process, tries = start(command, path), tries + 1
        assert process.poll() is None, path.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline, f"no progress in {_DEADLINE_S} s"
        time.sleep(0.005)
    return process


def finish(command: str, path: Path) -> None:
    """Run the command to its good end."""
    codes = [TemporaryError.exit_code]
    while codes[-1] == TemporaryError.exit_code and len(codes) <= _MOST_TRIES:
        codes.append(start(command, path).wait(timeout=_DEADLINE_S))
    assert codes[-1] == 0, (codes, path.with_suffix(".log").read_text()[-3000:])


def kill_everything(process: Command) -> None:
    """`kill -9` to the process and all that come from it, Ray's own sessions included."""
    assert process.pid is not None
    for pid in _descendants(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def _descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found
