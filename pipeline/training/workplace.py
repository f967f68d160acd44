"""Where a trained model grows until it is whole: a hidden folder beside the output, renamed to it in the end."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import ConfigError
from pipeline.training.job import SUMMARY_FILE


def finished_summary(output: Path) -> dict[str, Any] | None:
    """The summary of a training that is complete; None where nothing is there yet.

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
    """An empty hidden folder beside `output`, for this process alone; another one for the same output waits.

    It is removed in the end, and what a killed process left in it at the beginning.
    """
    folder = output.parent / f".{output.name}.training"
    with _locked(folder):
        _clear(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, output: Path, summary: dict[str, Any]) -> None:
    """Add the summary to a finished model, see it safe on disk and give it its name."""
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    folder.rename(output)
    _sync(output.parent)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = folder / "lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = lock.open("a")
        except FileNotFoundError:  # its last owner has just removed the folder
            continue
        with file:
            with contextlib.suppress(OSError):  # a filesystem without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, lock):
                yield
                return


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
