"""Commands of `alignpot` in process groups of their own, which tests kill and start again.

On a machine with much beside it a local Ray may not come up in time. The command then ends with 75, which asks whoever
runs it to run it again: here as there.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import TemporaryError

_MOST_TRIES = 4
_DEADLINE_S = 600


def start(command: str, path: Path) -> "subprocess.Popen[bytes]":
    """`alignpot COMMAND CONFIG`; what it prints goes beside the config."""
    with path.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", command, str(path)], stdout=log, stderr=log, start_new_session=True
        )


def started_until(command: str, path: Path, reached: Callable[[], bool]) -> "subprocess.Popen[bytes]":
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


def kill_everything(process: "subprocess.Popen[bytes]") -> None:
    """`kill -9` to the process and all that come from it, Ray's own sessions included."""
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
