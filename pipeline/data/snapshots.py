"""Tables of Iceberg, Delta and Lance as sources: one snapshot as files.

The newest snapshot changes with the next write, so a place in a table always names one. Its data files are shown as
files under a root that ends with the snapshot, such as `/data/prefs@3/lang=de/00000.parquet`, and are opened where they
are. They are numbered by their paths: what their names say, a split for instance, holds for no table. Folders give the
columns that the table is partitioned by. Credentials are those of the libraries and of AWS; none is part of a place.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from fsspec import AbstractFileSystem

from pipeline import config
from pipeline.errors import StorageError
from pipeline.faults import is_missing
from pipeline.shown import shown_path
from pipeline.sources.shards import NULL_PARTITION
from pipeline.sources.unchanged import digest_of


class DataFile(NamedTuple):
    """A file of a snapshot: its path on the store, its bytes, and the values of the partition that it is of."""

    path: str
    size: int
    partition: Mapping[str, str | None]


class SnapshotFiles(AbstractFileSystem):  # type: ignore[misc]
    """The files of one snapshot under `root`, by name. What is in them, subclasses tell.

    Other processes open the snapshot anew, once each: tables may have many files, and catalogs lend keys.
    """

    cachable = False

    def __init__(
        self, *, protocol: str, root: str, snapshot: str, files: Mapping[str, DataFile], storage: config.Storage
    ) -> None:
        """files: by name relative to `root`. Raises a StorageError if there are none."""
        super().__init__()
        self.protocol = protocol
        self.root = root
        self.snapshot = snapshot
        self._storage = storage
        self._files = {f"{root}/{name}": file for name, file in files.items()}
        if not files:
            raise StorageError(f"{protocol}://{shown_path(root)} has no rows. Name a snapshot that has some.")

    def __reduce__(self) -> Any:
        from pipeline.data.tables import Reopened

        return Reopened, (self.unstrip_protocol(self.root), self._storage, self.content)

    @functools.cached_property
    def content(self) -> str:
        """Digest of the names and places of all files."""
        return hashlib.blake2b(repr(sorted(self._files.items())).encode(), digest_size=16).hexdigest()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Of a file, or of the root, which is the only folder that can be asked for."""
        if path == self.root:
            return {"name": path, "size": 0, "type": "directory"}
        if path not in self._files:
            raise FileNotFoundError(path)
        return {"name": path, "size": self._files[path].size, "type": "file"}

    def find(self, path: str, detail: bool = False, **_: Any) -> Any:  # noqa: FBT001, FBT002 - as in fsspec
        """Every file below the root; the store is not asked."""
        found = {each: SnapshotFiles.info(self, each) for each in self._files} if path == self.root else {}
        return found if detail else [*found]


class ParquetFiles(SnapshotFiles):
    """The Parquet files of a snapshot of Iceberg or Delta, which lie on the file system `store`."""

    def __init__(self, store: AbstractFileSystem, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._store = store

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What the table and the store say of a file."""
        found = super().info(path)
        return found if path == self.root else {**self._store.info(self._files[path].path), **found}

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """The file, on its store."""
        return self._store.open(self._files[path].path, mode, **kwargs)

    def ukey(self, path: str) -> Any:
        """State of the file on its store. Raises a StorageError if it is gone, as after a cleanup of old versions."""
        try:
            return self._store.ukey(self._files[path].path)
        except FileNotFoundError as error:
            if not is_missing(error):
                raise
            where, file = shown_path(self.unstrip_protocol(self.root)), shown_path(self._files[path].path)
            raise StorageError(
                f"{where}: its file {file} is gone, perhaps in a cleanup of old snapshots. Read a newer one."
            ) from None

    def checksum(self, path: str) -> str:
        """As the digest of any file on that store."""
        return digest_of(self._store, self._files[path].path)


def named(files: Iterable[DataFile]) -> dict[str, DataFile]:
    """The files by the names that they are shown by."""
    found: dict[str, DataFile] = {}
    for number, file in enumerate(sorted(files, key=lambda file: file.path)):
        values = {name: NULL_PARTITION if text is None else text for name, text in file.partition.items()}
        folders = [f"{quote(name, safe='')}={quote(text, safe='')}" for name, text in values.items()]
        found["/".join([*folders, f"{number:05}.parquet"])] = file
    return found
