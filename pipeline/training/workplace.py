"""Where a trained model grows until it is whole: a hidden folder beside the output, renamed to it in the end.

Datasets are never renamed (see `pipeline.data.commit`), but a model is: it is a folder of files that a trainer writes,
and only a rename creates a whole folder at once. It never replaces a model: of several processes, each with a folder of
its own, the first one keeps the name. A lock makes others wait meanwhile, if the file system has locks.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pipeline.errors import ConfigError

SUMMARY_FILE: Final = "training.json"
_BEAT_S: Final = 600.0
_DEAD_AFTER_S: Final = 86_400.0


def finished_summary(output: Path) -> dict[str, Any] | None:
    """The summary of a complete training; None if nothing is there yet.

    Raises:
        ConfigError: something else is there.
    """
    if (output / SUMMARY_FILE).is_file():
        return dict(json.loads((output / SUMMARY_FILE).read_text(encoding="utf-8")))
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{output} is there, but no training wrote it: it has no {SUMMARY_FILE}. Name another place.")
    return None


@contextlib.contextmanager
def workplace(output: Path) -> Iterator[Path]:
    """An empty hidden folder beside `output`, of this call alone; another call for the same output waits.

    It is removed in the end. What killed processes left for this output is removed at the beginning.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    hidden = f".{output.name}.training"
    with _locked(output.parent / f"{hidden}.lock"):
        for path in output.parent.iterdir():
            owner = re.fullmatch(re.escape(hidden) + "-([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}", path.name)
            if owner is not None and _is_dead(path, owner[1], int(owner[2])):
                shutil.rmtree(path, ignore_errors=True)
        folder = output.parent / f"{hidden}-{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(folder, ended), daemon=True)
        beating.start()
        try:
            yield folder
        finally:
            ended.set()
            beating.join()
            shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, output: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Add the summary to a finished model, sync it to disk and give it its name; returns the summary of the model that
    has the name, which may be another one that was there first.

    Raises:
        ConfigError: something else has the name.
    """
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    try:
        folder.rename(output)
    except OSError:
        other = finished_summary(output)
        if other is None:
            raise
        return other
    _sync(output.parent)
    return summary


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Hold a lock file, which is removed in the end."""
    while True:
        with lock.open("a") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    continue
            except FileNotFoundError:  # its last owner has just removed it
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_dead(folder: Path, machine: str, pid: int) -> bool:
    """Whether the process belongs to this machine and is gone, or has long given no sign of life."""
    if machine == _machine():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # a process of another user
            pass
    try:
        return time.time() - folder.stat().st_mtime > _DEAD_AFTER_S
    except FileNotFoundError:
        return False


@functools.cache
def _machine() -> str:
    """Identifies the processes among which a process id is unique: those of this boot, and of this container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _beat(folder: Path, ended: threading.Event) -> None:
    """Renew the folder's time now and then: a training may write nothing for days."""
    while not ended.wait(_BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
