"""The one way anything becomes visible: an object is created whole, and only if nobody created it before.

S3 and its kin: one PUT with `If-None-Match: *`. Local disk: a temporary file in the same folder, synced, then linked
to its name. Either way a reader sees nothing or all of it, kill -9 at any moment included, and of several writers
exactly one wins. Nothing is ever renamed, overwritten or listed.
"""

import contextlib
import errno
import mmap
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import fsspec

from pipeline.data.place import Place
from pipeline.errors import StorageError, TemporaryError
from pipeline.faults import http_status, is_missing, storage_errors
from pipeline.scratch import create_locked, if_abandoned
from pipeline.shown import shown_path

_NUM_CONFLICT_RETRIES: Final = 6
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{32}\.tmp", re.DOTALL)
_MULTIPART_BYTES: Final = 100 * 2**20  # s3fs sends larger objects in parts


def create(place: Place, data: bytes) -> bool:
    """Create the object at `place` with `data`; True if this call did, False if it existed already.

    False does not say who created it: a PUT whose answer was lost, and which the client repeated, finds its own
    object. Look at the object if that matters.

    Raises:
        StorageError: no such bucket, no credentials, no permission, or a disk without hard links.
        TemporaryError: storage is busy, unreachable or full; whether the object exists is not known.
    """
    with storage_errors(str(place)):
        if place.is_local:
            return _create_linked(Path(place.root), lambda file: file.write(data))
        return _put(place.fs, place.root, data)


def create_from_file(place: Place, source: Path) -> bool:
    """`create` with the bytes of a local file, which need not fit into memory."""
    with storage_errors(str(place)), source.open("rb") as file:
        if place.is_local:
            return _create_linked(Path(place.root), lambda target: shutil.copyfileobj(file, target, 2**20))
        if source.stat().st_size < _MULTIPART_BYTES:
            return _put(place.fs, place.root, file.read())
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _put(place.fs, place.root, mapped)


def _put(fs: fsspec.AbstractFileSystem, path: str, data: bytes | mmap.mmap) -> bool:
    for attempt in range(_NUM_CONFLICT_RETRIES):
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            status = http_status(error)
            if status == 412:
                return False
            # 409: another create of this name is under way; S3 asks to try again.
            if status != 409 or attempt == _NUM_CONFLICT_RETRIES - 1:
                raise
            time.sleep(random.uniform(0.05, 0.1) * 2**attempt)  # noqa: S311
        else:
            return True
    raise AssertionError("unreachable")


def _create_linked(path: Path, write: Callable[[BinaryIO], object]) -> bool:
    """Write a temporary file and give it its name; whether we were first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = None
    while file is None:
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
        file = create_locked(temporary)
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            return _link(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def check_writable(place: Place) -> None:
    """Check before anything expensive that objects can be created below `place`, and that none is created twice.

    Raises:
        StorageError: no such bucket, no credentials, no permission, or a store that overwrites what it must not.
        TemporaryError: storage does not answer, or the disk is full.
    """
    probe = place / f".alignpot-{uuid.uuid4().hex}"
    try:
        create(probe, b"probe")
        honoured = not create(probe, b"probe")
    except (StorageError, TemporaryError) as error:
        # Worded for the path that the user gave.
        cause = error.__context__
        if isinstance(cause, FileNotFoundError) and is_missing(cause):
            raise StorageError(
                f"{place}: cannot be written (ENOENT). Correct the path, or create its folder."
            ) from None
        raise type(error)(str(error).replace(str(probe), str(place))) from None
    with contextlib.suppress(OSError):  # a store may allow writing without deleting; a probe that stays does no harm
        probe.fs.rm_file(probe.root)
    if not honoured:
        raise StorageError(
            f"{place}: the store overwrote an object that it was told to create only if absent "
            "(If-None-Match), so two runs could mix. Use a store that supports conditional writes."
        )


@contextlib.contextmanager
def no_new_folders(places: Iterable[Place]) -> Iterator[None]:
    """Remove the empty folders below which `check_writable` looks in this block, if they were not there before."""
    folders = [folder for place in places if place.is_local for folder in (Path(place.root), *Path(place.root).parents)]
    new = {folder for folder in folders if not folder.exists()}
    try:
        yield
    finally:
        for folder in sorted(new, key=lambda folder: len(folder.parts), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()


def clear_leftovers(place: Place) -> None:
    """Remove the temporary files that killed processes left below `place`, if it is on a disk."""
    if place.is_local:
        for folder, _, names in os.walk(place.root):
            for name in filter(_TEMPORARY.fullmatch, names):
                temporary = Path(folder, name)
                if_abandoned(temporary, temporary.unlink)


def _link(temporary: Path, path: Path) -> bool:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise StorageError(
                f"{shown_path(path)}: this disk has no hard links, without which a commit cannot be atomic. "
                "Use another disk."
            ) from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True
