"""Tables of Iceberg, Delta and Lance as sources: one snapshot as files.

The newest snapshot changes with the next write, so a place in a table always names one. Its data files are shown as
files under a root that ends with the snapshot, such as `/data/prefs@3/lang=de/00000.parquet`, and are opened where they
are. They are numbered by their paths: what their names say, a split for instance, holds for no table. Folders give the
columns that the table is partitioned by. Credentials are those of the libraries and of AWS; none is part of a place.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from fsspec import AbstractFileSystem

from pipeline import config
from pipeline.data.place import Place
from pipeline.errors import AlignpotError, ConfigError, StorageError, TemporaryError
from pipeline.faults import is_missing, translated
from pipeline.shown import shown_path
from pipeline.sources.shards import NULL_PARTITION
from pipeline.sources.unchanged import digest_of

_MISSING: Final = frozenset({"NoSuchTableError", "NoSuchIcebergTableError", "NoSuchNamespaceError"})
_BUSY: Final = frozenset({"ServiceUnavailableError", "ServerError", "TooManyRequestsError", "OperationalError"})
_DENIED: Final = frozenset(
    {"UnauthorizedError", "ForbiddenError", "AuthorizationExpiredError", "OAuthError", "SignError"}
)
_DENIED_TEXT: Final = re.compile(r"access.?denied|forbidden|invalid.?access.?key|signature|\b40[13]\b", re.IGNORECASE)


class DataFile(NamedTuple):
    """A file of a snapshot: its path on the store, its bytes, and the values of the partition that it is of."""

    path: str
    size: int
    partition: Mapping[str, str | None]


class SnapshotFiles(AbstractFileSystem):  # type: ignore[misc]
    """The files of one snapshot under `root`. What is in them, subclasses tell."""

    cachable = False

    def __init__(self, *, protocol: str, root: str, snapshot: str, sizes: Mapping[str, int]) -> None:
        """sizes: bytes of each file, by name relative to `root`. Raises a StorageError if there are none."""
        super().__init__()
        self.protocol = protocol
        self.root = root
        self.snapshot = snapshot
        if not sizes:
            raise StorageError(
                f"{protocol}://{shown_path(root)} has no rows. Name a table or a snapshot that has some."
            )
        self._infos = {
            f"{root}/{name}": {"name": f"{root}/{name}", "size": size, "type": "file"} for name, size in sizes.items()
        }

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Of a file, or of the root, which is the only folder that can be asked for."""
        if path == self.root:
            return {"name": path, "size": 0, "type": "directory"}
        if path not in self._infos:
            raise FileNotFoundError(path)
        return self._infos[path]

    def find(self, path: str, detail: bool = False, **_: Any) -> Any:  # noqa: FBT001, FBT002 - as in fsspec
        """Every file below the root."""
        infos = self._infos if path == self.root else {}
        return infos if detail else [*infos]


class ParquetFiles(SnapshotFiles):
    """The Parquet files of a snapshot of Iceberg or Delta, which lie on the file system `store`."""

    def __init__(self, store: AbstractFileSystem, *, files: Mapping[str, DataFile], **kwargs: Any) -> None:
        super().__init__(sizes={name: file.size for name, file in files.items()}, **kwargs)
        self._store = store
        self._paths = {f"{self.root}/{name}": file.path for name, file in files.items()}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What the store says of a file."""
        found = super().info(path)
        return found if path == self.root else {**self._store.info(self._paths[path]), **found}

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """The file, on its store."""
        return self._store.open(self._paths[path], mode, **kwargs)

    def ukey(self, path: str) -> Any:
        """State of the file on its store. Raises a StorageError if it is gone, as after a cleanup of old versions."""
        try:
            return self._store.ukey(self._paths[path])
        except FileNotFoundError as error:
            if not is_missing(error):
                raise
            raise StorageError(
                f"{shown_path(self.unstrip_protocol(self.root))}: its file {shown_path(self._paths[path])} is gone, "
                "perhaps in a cleanup of old snapshots. Read a newer one."
            ) from None

    def checksum(self, path: str) -> str:
        """As the digest of any file on that store."""
        return digest_of(self._store, self._paths[path])


def named(files: Iterable[DataFile]) -> dict[str, DataFile]:
    """The files by the names that they are shown by."""
    found: dict[str, DataFile] = {}
    for number, file in enumerate(sorted(files, key=lambda file: file.path)):
        values = {name: NULL_PARTITION if text is None else text for name, text in file.partition.items()}
        folders = [f"{name}={quote(text, safe='')}" for name, text in values.items()]
        found["/".join([*folders, f"{number:05}.parquet"])] = file
    return found


def location_of(place: Place) -> str:
    """The path or URL of a place, as the libraries want it."""
    return place.root if place.is_local else str(place.fs.unstrip_protocol(place.root))


def store_options(place: Place, storage: config.Storage) -> dict[str, str] | None:
    """How deltalake and lance reach the place; they find the credentials themselves."""
    if not hasattr(place.fs, "call_s3"):
        return None
    endpoint = storage.endpoint_url
    return {
        **({} if endpoint is None else {"aws_endpoint": endpoint}),
        **({"aws_allow_http": "true"} if endpoint is not None and endpoint.startswith("http://") else {}),
        **({} if storage.region is None else {"aws_region": storage.region}),
        **({"aws_skip_signature": "true"} if storage.anonymous else {}),
    }


@contextlib.contextmanager
def library_errors(where: str) -> Iterator[None]:
    """Raise what a library of tables throws inside the block as an error about the table `where`.

    The text of the library is left out: it may repeat URLs and keys.
    """
    try:
        yield
    except AlignpotError:
        raise
    except Exception as error:  # noqa: BLE001 - the libraries raise errors of many kinds, some of them mere Exceptions
        raise _as_ours(error, where) from None


def _as_ours(error: Exception, where: str) -> AlignpotError:
    name = type(error).__name__
    is_storage = isinstance(error, OSError)
    if isinstance(error, ImportError):
        found: AlignpotError = ConfigError(
            f"{where}: a package is not installed ({error.name}). Run: pip install 'alignpot[tables]'"
        )
    elif name == "NotInstalledError":
        found = ConfigError(f"{where}: its catalog needs another package. {shown_path(error)}")
    elif name in _MISSING:
        found = StorageError(f"{where}: the catalog has no such table ({name}). Correct the name.")
    elif name in _DENIED or (is_storage and _DENIED_TEXT.search(str(error))):
        found = StorageError(f"{where}: access is denied ({name}). Check the credentials of catalog and store.")
    elif (known := translated(error, where)) is not None:
        found = known
    elif name in _BUSY or is_storage:
        found = TemporaryError(
            f"{where}: the catalog or the store cannot be reached, or is busy ({name}). Run the same command again; it "
            "goes on. If it never worked, check their addresses."
        )
    else:
        found = StorageError(f"{where}: the library of such tables cannot read it ({name}). A newer one may.")
    return found
