"""Changes of the file system, as Python tells its audit hooks about them; and the death of a driver before one of them.

It imports nothing but the standard library: each process of a Ray loads it at its start.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

COMMITS = ("os.link",)
CHANGES = (*COMMITS, "open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate")

_WATCHED: set[Path] = set()


def is_change(event: str, arguments: tuple) -> bool:
    """Whether an event changes the file system."""
    if event == "open":
        return isinstance(arguments[2], int) and bool(arguments[2] & os.O_CREAT)
    return event in CHANGES and not (event == "os.mkdir" and Path(arguments[0]).is_dir())


class Trap:
    """Kills a driver before the change of storage with some number, whichever process makes it."""

    def __init__(self, folder: Path, storage: Path) -> None:
        self._folder, self._storage = folder, storage
        self._count, self._set = folder / "count", folder / "set"

    def environment(self) -> dict[str, str]:
        """What a Ray whose processes are to be watched needs at its start."""
        (self._folder / "sitecustomize.py").write_text(
            "from pathlib import Path\n"
            "from tests.steps.storage_changes import Trap\n"
            f"Trap(Path({str(self._folder)!r}), Path({str(self._storage)!r})).watch()\n"
        )
        return {"PYTHONPATH": f"{self._folder}:{Path(__file__).parents[2]}"}

    def set(self, driver: int, number: int) -> None:
        """The process with this id is to die before the change with this number, counted from one, from now on."""
        self._count.write_bytes(b"")
        (self._folder / "new").write_text(f"{driver} {number}")
        (self._folder / "new").rename(self._set)

    def num_seen(self) -> int:
        """How many changes there were, and none counts any more."""
        self._set.unlink()
        return self._count.stat().st_size

    def watch(self) -> None:
        """In a process that is watched. What was said before, or in the process that it was forked from, counts."""
        if self._storage not in _WATCHED:
            _WATCHED.add(self._storage)
            sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple) -> None:
        if is_change(event, arguments) and any(str(each).startswith(str(self._storage)) for each in arguments[:2]):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                driver, number = map(int, self._set.read_text().split())
                count = os.open(self._count, os.O_WRONLY | os.O_APPEND)
                os.write(count, b".")
                if os.fstat(count).st_size >= number:
                    os.kill(driver, signal.SIGKILL)
                os.close(count)
