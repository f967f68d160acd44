"""Writes a chosen subset for trainers: a Hugging Face `load_from_disk` folder, Parquet files, or both.

    run.json                                  first; the same fingerprint protocol as a scored run
    hf/train/data-00000-of-000NN.arrow        Arrow streams, with dataset_info.json and state.json
    hf/dataset_dict.json                      last of hf
    parquet/train-00000-of-000NN.parquet      with page checksums
    report.json, _SUCCESS.json                last of all

The bytes depend on the rows and the settings alone, not on how the rows were cut into tables, nor on time or chance.
Files grow on local disk and are created whole, so that an exception leaves nothing half written; a run that died is
run again, and finds what it wrote.
"""

import contextlib
import dataclasses
import hashlib
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import fsspec
import pyarrow as pa

from pipeline.errors import IntegrityError, SchemaError
from pipeline.storage.commit import create, create_from_file
from pipeline.storage.filesystem import display, list_sizes, object_size, read_bytes, read_range, storage_errors
from pipeline.storage.runs import FORMAT, claim, fingerprint_digest, json_bytes, parsed, schema_json
from pipeline.storage.subset_files import SubsetFile, dataset_info_json, state_json

REPORT_FILE: Final = "report.json"
MANIFEST_FILE: Final = "_SUCCESS.json"
BATCH_ROWS: Final = 4096  # rows of one Arrow batch and of one Parquet row group
FILE_NAMES: Final = {
    "hf": "hf/train/data-{index:05d}-of-{num_files:05d}.arrow",
    "parquet": "parquet/train-{index:05d}-of-{num_files:05d}.parquet",
}
_CHUNK_BYTES: Final = 16 * 2**20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SubsetSpec:
    """What is to be written."""

    num_rows: int
    schema: pa.Schema
    formats: tuple[str, ...]
    """hf, parquet or both."""
    rows_per_file: int
    fingerprint: Mapping[str, Any]
    """JSON values of everything that decides which rows are chosen; formats, schema and num_rows are added to it."""
    config: Mapping[str, Any]
    version: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SubsetManifest:
    """A complete subset."""

    version: str
    config: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    num_rows: int
    files: tuple[Mapping[str, Any], ...]
    """path relative to the subset, num_rows, size in bytes and blake2b digest of each data file."""
    extra: Mapping[str, Any]


class SubsetWriter:
    """Takes the rows of a subset in order and publishes them; use as a context manager.

    `done` is the manifest where the subset is complete already: then there is nothing to write. The stored layout
    (`rows_per_file`) of a run that is gone on with wins over the one in `spec`.

    Raises:
        FingerprintError: another subset was begun under `root`.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, spec: SubsetSpec) -> None:
        self._fs, self._root = fs, root
        self._schema = spec.schema.remove_metadata()
        layout = {
            "num_rows": spec.num_rows,
            "formats": sorted(spec.formats),
            "columns": schema_json(self._schema)["columns"],
        }
        stored = claim(
            fs,
            root,
            kind="subset",
            fingerprint={**spec.fingerprint, "layout": layout},
            body={"version": spec.version, "config": spec.config, "rows_per_file": spec.rows_per_file},
        )
        self._spec = dataclasses.replace(spec, fingerprint=stored["fingerprint"], rows_per_file=stored["rows_per_file"])
        self.done: SubsetManifest | None = open_subset(fs, root)
        self._pending: deque[pa.Table] = deque()
        self._num_pending = self._num_taken = 0
        self._files: list[dict[str, Any]] = []
        self._open: SubsetFile | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="alignpot-subset-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what lies on local disk; published files stay."""
        if self._open is not None:
            self._open.abandon()
            self._open = None
        with contextlib.suppress(FileNotFoundError):
            self._folder.cleanup()

    @property
    def num_files(self) -> int:
        """Files of each format; an empty subset has one, without rows."""
        return max(1, -(-self._spec.num_rows // self._spec.rows_per_file))

    def write(self, table: pa.Table) -> None:
        """Append rows.

        Raises:
            SchemaError: other columns than those announced.
            IntegrityError: more rows than announced.
        """
        if not table.schema.remove_metadata().equals(self._schema):
            raise SchemaError(
                f"{display(self._fs, self._root)}: a table for the subset has {table.schema.names}; "
                f"wanted {self._schema.names}, with the types announced."
            )
        self._num_taken += table.num_rows
        if self._num_taken > self._spec.num_rows:
            raise self._row_error(f"at least {self._num_taken}")
        self._pending.append(table.replace_schema_metadata(None))
        self._num_pending += table.num_rows
        while self._num_pending >= (num_rows := self._next_batch_rows()) > 0:
            self._write_batch(num_rows)

    def finish(self, *, report: Mapping[str, Any], extra: Mapping[str, Any]) -> SubsetManifest:
        """Publish what remains, then the report and the manifest; the manifest that stands is returned.

        Raises:
            IntegrityError: fewer rows than announced, or files of other content stand in the way.
        """
        if self._num_taken != self._spec.num_rows:
            raise self._row_error(str(self._num_taken))
        if self._spec.num_rows == 0:
            self._write_batch(0)
        if "hf" in self._spec.formats:
            self._publish_hf_description()
        create(self._fs, f"{self._root}/{REPORT_FILE}", json_bytes(report))
        manifest = SubsetManifest(
            version=self._spec.version,
            config=self._spec.config,
            fingerprint=self._spec.fingerprint,
            num_rows=self._spec.num_rows,
            files=tuple(sorted(self._files, key=lambda file: file["path"])),
            extra=extra,
        )
        value = {
            "format": FORMAT,
            "kind": "subset",
            **dataclasses.asdict(manifest),
            "schema": schema_json(self._schema),
        }
        if create(self._fs, f"{self._root}/{MANIFEST_FILE}", json_bytes(value)):
            return manifest
        stored = open_subset(self._fs, self._root)
        if stored is None or stored.files != manifest.files:
            raise IntegrityError(f"{display(self._fs, self._root)} holds a subset of other content. Use another path.")
        return stored

    def _row_error(self, got: str) -> IntegrityError:
        return IntegrityError(
            f"{display(self._fs, self._root)}: {got} rows for a subset of {self._spec.num_rows}. The chosen rows must "
            "not change while they are written; select again."
        )

    @property
    def _num_written(self) -> int:
        return self._num_taken - self._num_pending

    def _next_batch_rows(self) -> int:
        """Follows from the position alone, so that the bytes do not depend on how the rows come."""
        left_in_file = self._spec.rows_per_file - (self._open.num_rows if self._open is not None else 0)
        return min(BATCH_ROWS, left_in_file, self._spec.num_rows - self._num_written)

    def _write_batch(self, num_rows: int) -> None:
        parts, missing = [self._schema.empty_table()], num_rows
        while missing:
            first = self._pending.popleft()
            parts.append(first.slice(0, missing))
            if first.num_rows > missing:
                self._pending.appendleft(first.slice(missing))
            missing -= parts[-1].num_rows
        self._num_pending -= num_rows
        with storage_errors(self._folder.name):
            if self._open is None:
                self._open = SubsetFile(Path(self._folder.name), self._schema, self._spec.formats)
            self._open.write(_canonical(pa.concat_tables(parts)))
        if self._open.num_rows == self._spec.rows_per_file or self._num_written == self._spec.num_rows:
            self._publish_file(self._open)
            self._open = None

    def _publish_file(self, complete: SubsetFile) -> None:
        index = len(self._files) // len(self._spec.formats)
        with storage_errors(self._folder.name):
            complete.close()
        for form, local in complete.paths.items():
            path = FILE_NAMES[form].format(index=index, num_files=self.num_files)
            with local.open("rb") as file:
                content = hashlib.file_digest(file, _blake2b).hexdigest()
            size = local.stat().st_size
            if not create_from_file(self._fs, f"{self._root}/{path}", local):
                self._check_same(path, size, content)
            self._files.append({"path": path, "num_rows": complete.num_rows, "size": size, "blake2b": content})
            local.unlink()

    def _check_same(self, path: str, size: int, content: str) -> None:
        """The file that an earlier attempt left must be the one we would have written."""
        full = f"{self._root}/{path}"
        if object_size(self._fs, full) != size:
            raise self._other_content(full)
        hasher = _blake2b()
        for start in range(0, size, _CHUNK_BYTES):
            hasher.update(read_range(self._fs, full, start, min(size, start + _CHUNK_BYTES)))
        if hasher.hexdigest() != content:
            raise self._other_content(full)

    def _publish_hf_description(self) -> None:
        names = [file["path"].rpartition("/")[2] for file in self._files if file["path"].startswith("hf/")]
        digests = "".join(file["blake2b"] for file in self._files if file["path"].startswith("hf/"))
        fingerprint = fingerprint_digest({"files": digests, "run": self._spec.fingerprint})[:16]
        for path, data in (
            ("hf/train/dataset_info.json", dataset_info_json(self._schema)),
            ("hf/train/state.json", state_json(names, fingerprint)),
            ("hf/dataset_dict.json", b'{"splits": ["train"]}'),
        ):
            full = f"{self._root}/{path}"
            if not create(self._fs, full, data) and read_bytes(self._fs, full) != data:
                raise self._other_content(full)

    def _other_content(self, path: str) -> IntegrityError:
        return IntegrityError(
            f"{display(self._fs, path)} was left by an earlier attempt with other content, perhaps by other versions "
            "of the libraries. Use another path, or remove this one."
        )


def open_subset(fs: fsspec.AbstractFileSystem, root: str) -> SubsetManifest | None:
    """The manifest of a complete subset whose files are all there; None if it is not complete.

    Raises:
        IntegrityError: files that it names are gone or cut short.
    """
    manifest = load_subset_manifest(fs, root)
    if manifest is not None:
        sizes = list_sizes(fs, root)
        lost = [file["path"] for file in manifest.files if sizes.get(file["path"]) != file["size"]]
        if lost:
            raise IntegrityError(f"{display(fs, root)}: files are gone or cut short: {lost[:10]}. Use another path.")
    return manifest


def load_subset_manifest(fs: fsspec.AbstractFileSystem, root: str) -> SubsetManifest | None:
    """The manifest of the subset under `root`; None if it is not complete.

    Raises:
        IntegrityError: it is damaged.
    """
    path = f"{root}/{MANIFEST_FILE}"
    data = read_bytes(fs, path)
    if data is None:
        return None
    where = display(fs, path)
    value = parsed(data, where)
    try:
        own = {field.name: value[field.name] for field in dataclasses.fields(SubsetManifest)}
        return SubsetManifest(**{**own, "files": tuple(own["files"])})
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"{where} is damaged or no subset's ({type(error).__name__}).") from None


def _blake2b() -> Any:
    return hashlib.blake2b(digest_size=16)


def _canonical(table: pa.Table) -> pa.Table:
    """The same rows in fresh buffers: what lies under nulls, before offsets and in padding no longer differs."""
    return table.combine_chunks().take(pa.array(range(table.num_rows), type=pa.int64()))
