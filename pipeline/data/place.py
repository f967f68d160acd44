"""Opens the place that a URL names, and reads and checks it. A fault is never mistaken for a missing object.

Supports local paths, file://, s3:// and other stores whose client can create an object only if it is absent; never
http. Sources may be tables, or lie on the Hugging Face Hub. Everything below is read through a `Place`, so that every
fault leaves as an error of pipeline.errors. Listing caches are off, except for a commit of the hub, which never
changes: a stale listing would be a wrong answer about what has been committed.
"""

import concurrent.futures
import contextlib
import inspect
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline import config
from pipeline.config import NO_CREDENTIALS, carries_credentials
from pipeline.errors import ConfigError, IntegrityError, StorageError, TemporaryError
from pipeline.faults import http_status, is_missing, storage_errors
from pipeline.shown import shown_path

SUPPORTED: Final = "a local path, file://, s3://, gs:// or abfs://"
NUM_READERS: Final = 8  # requests in flight: hides the latency of an object store, but too few to be throttled
_REMOTE: Final = frozenset({"gs", "gcs", "abfs", "abfss", "az"})
_ON_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(@.+)?")
_FILE = re.compile(r"\.(jsonl?|ndjson|csv|tsv|parquet|pq|arrows?|feather|ipc|txt|gz|zstd?)$", re.IGNORECASE)
_COMMIT = re.compile(r"datasets/[^@]+@([0-9a-f]{40})(?:/|$)")
_TABLE = re.compile(r"(?:delta|iceberg|lance)://")
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)$", re.DOTALL)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder or an object on a file system. `place / "name"` is what lies below, `str(place)` what messages write.

    Survives pickling to other processes.
    """

    fs: fsspec.AbstractFileSystem
    root: str
    """Path on `fs`, normalised and without a trailing slash."""

    @classmethod
    def of_source(cls, url: str, storage: config.Storage) -> "Place":
        """The place of data to read: also a dataset of the hub or a table, at its commit or snapshot of now.

        Raises:
            ConfigError: as `open`.
            StorageError: no such dataset or folder, no credentials, no permission, or nothing there.
            TemporaryError: storage or the hub does not answer.
        """
        if _TABLE.match(url):
            from pipeline.data.tables import open_table

            if carries_credentials(url):
                raise ConfigError(f"a path or URL {NO_CREDENTIALS}.")
            return cls(*open_table(url, storage))
        is_name = is_name_on_hub(url)
        if not is_name and not url.startswith("hf://"):
            place = cls.open(url, storage)
        else:
            from pipeline.data.hub import open_dataset

            if carries_credentials(url):
                raise ConfigError(f"a path or URL {NO_CREDENTIALS}.")
            try:
                place = cls(*open_dataset(f"hf://datasets/{url}" if is_name else url))
            except (StorageError, TemporaryError) as error:
                if not is_name:
                    raise
                raise type(error)(f"{shown_path(url)} is no local file or folder. {error}") from None
        place.check_readable()
        return place

    @classmethod
    def open(cls, url: str, storage: config.Storage) -> "Place":
        """The place that `url` names. Opens no connection: see `check_readable` and `commit.check_writable`.

        Raises:
            ConfigError: a scheme that is not supported, or a URL that is malformed or carries credentials.
        """
        where = shown_path(url)
        if carries_credentials(url):
            raise ConfigError(f"a path or URL {NO_CREDENTIALS}.")
        if "\0" in url:
            raise ConfigError(f"{where}: a path must not hold a null character.")
        if "::" in url:
            raise ConfigError(f"{where}: chained URLs are not supported; wanted {SUPPORTED}.")
        match = _SCHEME.match(url)
        scheme, rest = (match[1].lower(), match[2]) if match else ("file", url)
        if scheme in ("file", "local"):
            if not rest:
                raise ConfigError("an empty path is not usable; '.' is the working directory.")
            # Paths stay text here: on object stores they are keys, which pathlib would rewrite.
            return cls(LocalFileSystem(skip_instance_cache=True), os.path.abspath(os.path.expanduser(rest)))  # noqa: PTH100, PTH111
        path = rest.strip("/")
        if {"", ".", ".."} & {*path.split("/")}:
            raise ConfigError(f"{where}: wanted bucket and prefix without empty, '.' or '..' segments.")
        return cls(open_s3(storage), path) if scheme in ("s3", "s3a") else cls(*_open_other(url, scheme))

    def __truediv__(self, name: str) -> "Place":
        return Place(self.fs, f"{self.root}/{name}")

    def __str__(self) -> str:
        """A plain path on a local disk, else the full URL."""
        return shown_path(self.root if self.is_local else self.fs.unstrip_protocol(self.root))

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def commit(self) -> str | None:
        """The commit of a dataset of the hub, or the snapshot of a table; None elsewhere."""
        match = _COMMIT.match(self.root) if self.fs.protocol == "hf" else None
        return getattr(self.fs, "snapshot", None) if match is None else match[1]

    def read(self) -> bytes | None:
        """The whole object, or None if there is none; a missing bucket or a busy server is an error."""
        return self._ask(lambda: bytes(self.fs.cat_file(self.root)))

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of an object that a manifest or listing names.

        Raises:
            IntegrityError: the object is gone, or shorter than it was.
        """

        def ask() -> bytes:
            try:
                return bytes(self.fs.cat_file(self.root, start=start, end=end))
            except OSError as error:
                if http_status(error) != 416:
                    raise
                return b""

        data = self._ask(ask)
        if data is None:
            raise IntegrityError(f"{self} is gone, though it was committed. Restore it, or score again.")
        if len(data) != end - start:
            raise IntegrityError(
                f"{self} is cut short: {len(data)} bytes where {end - start} were wanted. Restore it, or score again."
            )
        return data

    def size(self) -> int | None:
        """Bytes of the object; None if there is none."""
        return self._ask(lambda: int(self.fs.info(self.root)["size"]))

    def sizes(self) -> dict[str, int]:
        """Bytes of every object below this folder, by name relative to it; empty if nothing is there."""
        return dict(self.objects())

    def objects(self) -> Iterator[tuple[str, int]]:
        """The same one by one, in any order: there may be a million."""
        if self.is_local:
            yield from self._files_below("")
        elif hasattr(self.fs, "call_s3"):
            yield from self._keys_below()
        else:
            found: dict[str, dict[str, Any]] = self._ask(lambda: self.fs.find(self.root, detail=True)) or {}
            within = f"{self.root}/"
            for name, info in found.items():
                if info["type"] == "file" and name.startswith(within):
                    yield name.removeprefix(within), int(info["size"])

    def _files_below(self, folder: str) -> Iterator[tuple[str, int]]:
        missing = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with storage_errors(str(self)), missing, os.scandir(f"{self.root}/{folder}") as found:
            for entry in found:
                if entry.is_dir():
                    yield from self._files_below(f"{folder}{entry.name}/")
                else:
                    with contextlib.suppress(FileNotFoundError):
                        yield f"{folder}{entry.name}", entry.stat().st_size

    def _keys_below(self) -> Iterator[tuple[str, int]]:
        # Not ls(): s3fs swallows a 503 in there and calls the folder missing.
        bucket, _, prefix = self.root.partition("/")
        within = f"{prefix}/" if prefix else ""
        page: dict[str, str] | None = {}
        while page is not None:
            ask = partial(self.fs.call_s3, "list_objects_v2", Bucket=bucket, Prefix=within, **page)
            answer: dict[str, Any] = self._ask(ask) or {}
            for each in answer.get("Contents", ()):
                name = each["Key"].removeprefix(within)
                if name and not name.endswith("/"):
                    yield name, int(each["Size"])
            token = answer.get("NextContinuationToken")
            page = {"ContinuationToken": token} if token else None

    def _ask(self, ask: Callable[[], _Result]) -> _Result | None:
        """What the store answers; None if there is no such object."""
        with storage_errors(str(self)):
            try:
                return ask()
            except FileNotFoundError as error:
                if not is_missing(error):
                    raise
                return None

    def check_readable(self) -> None:
        """Check that something is there and may be listed, before anything expensive starts.

        Raises:
            StorageError: no such bucket or folder, no credentials, no permission, or nothing there.
            TemporaryError: storage does not answer.
        """
        with storage_errors(str(self)):
            if hasattr(self.fs, "call_s3"):
                bucket, _, prefix = self.root.partition("/")
                listed = self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix and f"{prefix}/", MaxKeys=1)
                if listed.get("Contents"):
                    return
            self.fs.info(self.root)
            if self.is_local and not os.access(self.root, os.R_OK):
                raise StorageError(f"{self}: permission denied. Grant read access, or use another path.")


def is_name_on_hub(url: str) -> bool:
    """Whether a path is the name of a dataset on the hub, ORG/NAME, and no file or folder here."""
    match = _ON_HUB.fullmatch(url)
    return match is not None and not _FILE.search(match[1]) and not Path(url).expanduser().exists()


def open_s3(storage: config.Storage, **keys: Any) -> fsspec.AbstractFileSystem:
    """A client of S3. keys: as s3fs names them, if they are not those of AWS; the client must not be pickled then."""
    from pipeline.data.s3 import S3FileSystem

    endpoint = storage.endpoint_url
    if endpoint is not None and not re.match(r"^https?://[^@?#\s]+$", endpoint):
        raise ConfigError("storage.endpoint_url must be http(s)://host[:port], without credentials.")
    return S3FileSystem(
        **keys,
        max_attempts=storage.max_attempts,
        anon=storage.anonymous,
        endpoint_url=endpoint,
        client_kwargs={"region_name": storage.region} if storage.region else {},
        config_kwargs={"connect_timeout": 20, "read_timeout": 60},
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def _open_other(url: str, scheme: str) -> tuple[fsspec.AbstractFileSystem, str]:
    where = shown_path(url)
    if _TABLE.match(url):
        raise ConfigError(f"{where}: only a source can be a table. Use output.table or alignpot publish for a subset.")
    if scheme == "hf":
        raise ConfigError(f"{where}: only a source can lie on the hub. Use output.hub or alignpot push for a subset.")
    if scheme not in _REMOTE:
        raise ConfigError(f"{where}: scheme {scheme}:// is not supported; wanted {SUPPORTED}.")
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError:
        client = "gcsfs" if scheme in ("gs", "gcs") else "adlfs"
        raise ConfigError(f"{where}: {scheme}:// needs another package. Run: pip install {client}") from None
    put = getattr(kind, "_pipe_file", kind.pipe_file)
    if "mode" not in inspect.signature(put).parameters:
        raise ConfigError(f"{where}: the installed client of {scheme}:// cannot create only if absent. Upgrade it.")
    fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    return fs, str(path).rstrip("/")


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], num_threads: int = NUM_READERS
) -> Iterator[_Result]:
    """`function` of each item, in order, working at most `num_threads` items ahead; memory does not grow with items."""
    pool = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="alignpot-read")
    ahead: deque[concurrent.futures.Future[_Result]] = deque()
    is_left = False
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except GeneratorExit:
        is_left = True  # perhaps by the garbage collector, which may run where a thread cannot be waited for
        raise
    finally:
        pool.shutdown(wait=not is_left, cancel_futures=True)
