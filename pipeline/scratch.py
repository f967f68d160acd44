"""Temporary files and folders that are removed even if their process is killed: the next process removes them.

Their owner holds a lock while it lives. A later process removes those whose lock it gets. On a file system without
locks they stay.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from pipeline.faults import storage_errors

_LOCK: Final = "alignpot.lock"


@contextlib.contextmanager
def scratch_folder(kind: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder for this call alone, below `parent` or TMPDIR, until the block ends.

    Folders of any kind that killed processes left there are removed first.

    Raises:
        StorageError: the place cannot be written.
        TemporaryError: it is full.
    """
    with contextlib.ExitStack() as stack:
        with storage_errors(str(parent or "TMPDIR")):
            place = parent or Path(tempfile.gettempdir())
            for lock in place.glob(f"alignpot-*/{_LOCK}"):
                if_abandoned(lock, partial(shutil.rmtree, lock.parent, ignore_errors=True))
            inner = _claimed(stack, kind, place) / kind
            inner.mkdir()
        yield inner


def _claimed(stack: contextlib.ExitStack, kind: str, place: Path) -> Path:
    while True:
        new = tempfile.TemporaryDirectory(prefix=f"alignpot-{kind}-", dir=place, ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(new))
        lock = create_locked(folder / _LOCK)
        if lock is not None:
            stack.enter_context(lock)
            return folder


def create_locked(path: Path) -> BinaryIO | None:
    """Create the file and lock it until it is closed; None if `if_abandoned` removed it before it was locked."""
    file = path.open("xb")
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)
    if path.exists():
        return file
    file.close()
    return None


def if_abandoned(path: Path, remove: Callable[[], object]) -> None:
    """Call `remove` if `create_locked` made `path` for a process of this user that is now dead."""
    with contextlib.suppress(OSError), path.open("rb+") as file:
        if os.fstat(file.fileno()).st_uid == os.geteuid():
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove()
