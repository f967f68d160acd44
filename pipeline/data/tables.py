"""Opens the table that a URL names. The library of its kind is loaded when it is needed, not before."""

import functools
from dataclasses import dataclass
from typing import Any, Final

from pipeline import config
from pipeline.data import delta, iceberg, lance
from pipeline.data.snapshots import SnapshotFiles
from pipeline.errors import IntegrityError
from pipeline.shown import shown_path

_OPENERS: Final = {
    "delta": delta.open_snapshot,
    "iceberg": iceberg.open_snapshot,
    "lance": lance.open_snapshot,
}


def open_table(url: str, storage: config.Storage) -> tuple[SnapshotFiles, str]:
    """The files of a snapshot of the table, the newest if none is named, and the root that they are under.

    Raises:
        ConfigError: a malformed URL, a catalog that is not described, or a library that is not installed.
        StorageError: no such table or snapshot, no permission, or files that hold other rows than the snapshot.
        TemporaryError: the store or the catalog does not answer.
    """
    kind, _, name = url.partition("://")
    fs = _OPENERS[kind](name, storage)
    return fs, fs.root


@dataclass(frozen=True)
class Reopened:
    """A snapshot that another process opened. This one opens it when it first reads, so that a fault is one of reading.

    content: see `SnapshotFiles.content`.
    """

    url: str
    storage: config.Storage
    content: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for while it is unpickled
            raise AttributeError(name)
        return getattr(_reopened(self.url, self.storage, self.content), name)


@functools.lru_cache(maxsize=16)
def _reopened(url: str, storage: config.Storage, content: str) -> SnapshotFiles:
    fs, _ = open_table(url, storage)
    if fs.content != content:
        raise IntegrityError(f"{shown_path(url)} was made anew since the run began. Write to another output.")
    return fs
