"""Opens the table that a URL names. The library of its kind is loaded when it is needed, not before."""

from typing import Final

from pipeline import config
from pipeline.data import delta, iceberg, lance
from pipeline.data.snapshots import SnapshotFiles

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
