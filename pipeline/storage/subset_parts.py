"""One numbered file of a subset, in each of its formats: grown batch by batch on local disk, then created whole.

The bytes depend on the rows and the settings alone, not on how the rows were cut into tables, nor on time or chance;
so files can be written in any order, by any process, and by two at once.
"""

import contextlib
import dataclasses
import hashlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import fsspec
import pyarrow as pa

from pipeline.errors import IntegrityError
from pipeline.scratch import scratch_folder
from pipeline.storage.commit import create, create_from_file
from pipeline.storage.filesystem import display, object_size, read_bytes, read_range, storage_errors
from pipeline.storage.subset_files import SubsetFile

BATCH_ROWS: Final = 4096  # rows of one Arrow batch and of one Parquet row group
FILE_NAMES: Final = {
    "hf": "hf/train/data-{index:05d}-of-{num_files:05d}.arrow",
    "parquet": "parquet/train-{index:05d}-of-{num_files:05d}.parquet",
    "jsonl": "data/train-{index:05d}-of-{num_files:05d}.jsonl",
}
_CHUNK_BYTES: Final = 16 * 2**20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SubsetSpec:
    """What is to be written."""

    num_rows: int
    schema: pa.Schema
    formats: tuple[str, ...]
    """hf and parquet for subsets; jsonl for exports."""
    rows_per_file: int
    fingerprint: Mapping[str, Any]
    """JSON values of everything that decides which rows are chosen; formats, schema and num_rows are added to it."""
    config: Mapping[str, Any]
    version: str

    @property
    def num_files(self) -> int:
        """Files of each format; an empty subset has one, without rows."""
        return max(1, -(-self.num_rows // self.rows_per_file))

    def rows_of_file(self, index: int) -> range:
        """The rows that a file holds, counted over the subset."""
        start = index * self.rows_per_file
        return range(start, min(start + self.rows_per_file, self.num_rows))


class FileWriter:
    """Takes the rows of one file in order and publishes it; use as a context manager."""

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, spec: SubsetSpec, index: int) -> None:
        self._fs, self._root, self._spec, self._index = fs, root, spec, index
        self._schema = spec.schema.remove_metadata()
        self._pending: deque[pa.Table] = deque()
        self._num_pending = self._num_written = 0
        self._stack = contextlib.ExitStack()
        self._folder = self._stack.enter_context(scratch_folder("subset"))
        with storage_errors(str(self._folder)):
            self._file = SubsetFile(self._folder, self._schema, spec.formats)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what lies on local disk; a published file stays."""
        self._file.abandon()
        self._stack.close()

    @property
    def num_missing(self) -> int:
        """Rows that the file still wants."""
        return len(self._spec.rows_of_file(self._index)) - self._num_written - self._num_pending

    def write(self, table: pa.Table) -> None:
        """Append rows of the subset's schema, `num_missing` at most."""
        self._pending.append(table.replace_schema_metadata(None))
        self._num_pending += table.num_rows
        while self._num_pending >= BATCH_ROWS:
            self._write_batch(BATCH_ROWS)

    def publish(self) -> list[dict[str, Any]]:
        """Create the file, if it is not there already: path, num_rows, size and blake2b digest of each format's.

        Raises:
            IntegrityError: rows are missing, or a file of other content stands in the way.
        """
        if self.num_missing:
            raise IntegrityError(
                f"{display(self._fs, self._root)}: {self.num_missing} rows are missing from file {self._index}. The "
                "chosen rows must not change while they are written; select again."
            )
        if self._num_pending or not self._num_written:
            self._write_batch(self._num_pending)
        with storage_errors(str(self._folder)):
            self._file.close()
        return [self._published(form, local) for form, local in self._file.paths.items()]

    def _published(self, form: str, local: Path) -> dict[str, Any]:
        path = FILE_NAMES[form].format(index=self._index, num_files=self._spec.num_files)
        with local.open("rb") as file:
            content = hashlib.file_digest(file, _blake2b).hexdigest()
        size = local.stat().st_size
        if not create_from_file(self._fs, f"{self._root}/{path}", local):
            self._check_same(path, size, content)
        local.unlink()
        return {"path": path, "num_rows": self._num_written, "size": size, "blake2b": content}

    def _write_batch(self, num_rows: int) -> None:
        parts, missing = [self._schema.empty_table()], num_rows
        while missing:
            first = self._pending.popleft()
            parts.append(first.slice(0, missing))
            if first.num_rows > missing:
                self._pending.appendleft(first.slice(missing))
            missing -= parts[-1].num_rows
        self._num_pending -= num_rows
        self._num_written += num_rows
        with storage_errors(str(self._folder)):
            self._file.write(_canonical(pa.concat_tables(parts)))

    def _check_same(self, path: str, size: int, content: str) -> None:
        """The file that an earlier attempt left must be the one we would have written."""
        full = f"{self._root}/{path}"
        if object_size(self._fs, full) != size or digest_of_object(self._fs, full, size) != content:
            raise other_content(self._fs, full)


def publish_beside(fs: fsspec.AbstractFileSystem, root: str, contents: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Create the small files that stand beside the rows: path, size and blake2b digest of each.

    Raises:
        IntegrityError: a file of other content stands in the way.
    """
    for path, data in contents.items():
        full = f"{root}/{path}"
        if not create(fs, full, data) and read_bytes(fs, full) != data:
            raise other_content(fs, full)
    return [{"path": path, "size": len(data), "blake2b": _blake2b(data).hexdigest()} for path, data in contents.items()]


def check_file(fs: fsspec.AbstractFileSystem, root: str, record: Mapping[str, Any]) -> None:
    """Read a file that a manifest names and compare its size and digest.

    Raises:
        IntegrityError: it is gone, or is not the one that was written.
    """
    full, size = f"{root}/{record['path']}", record["size"]
    if object_size(fs, full) != size or digest_of_object(fs, full, size) != record["blake2b"]:
        raise IntegrityError(f"{display(fs, full)} is gone, or not the file that was written. Restore it.")


def other_content(fs: fsspec.AbstractFileSystem, path: str) -> IntegrityError:
    """The error of a file that is not the one that would be written."""
    return IntegrityError(
        f"{display(fs, path)} was left by an earlier attempt with other content, perhaps by other versions "
        "of the libraries. Use another path, or remove this one."
    )


def digest_of_object(fs: fsspec.AbstractFileSystem, path: str, size: int) -> str:
    """blake2b of an object of `size` bytes, 32 hex digits."""
    hasher = _blake2b()
    for start in range(0, size, _CHUNK_BYTES):
        hasher.update(read_range(fs, path, start, min(size, start + _CHUNK_BYTES)))
    return str(hasher.hexdigest())


def _blake2b(data: bytes = b"") -> Any:
    return hashlib.blake2b(data, digest_size=16)


def _canonical(table: pa.Table) -> pa.Table:
    """The same rows in fresh buffers: what lies under nulls, before offsets and in padding no longer differs."""
    return table.combine_chunks().take(pa.array(range(table.num_rows), type=pa.int64()))
