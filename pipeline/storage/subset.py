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

import dataclasses
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import fsspec
import pyarrow as pa

from pipeline.errors import IntegrityError, SchemaError
from pipeline.shown import listed, quoted
from pipeline.storage.commit import create
from pipeline.storage.filesystem import display, list_sizes
from pipeline.storage.runs import claim, read_sealed, schema_json, sealed
from pipeline.storage.subset_files import hf_descriptions
from pipeline.storage.subset_parts import FileWriter, publish_beside
from pipeline.storage.subset_parts import SubsetSpec as SubsetSpec  # noqa: PLC0414

REPORT_FILE: Final = "report.json"
MANIFEST_FILE: Final = "_SUCCESS.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SubsetManifest:
    """A complete subset."""

    version: str
    config: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    num_rows: int
    files: tuple[Mapping[str, Any], ...]
    """path relative to the subset, num_rows, size in bytes and blake2b digest of each data file."""
    beside: tuple[Mapping[str, Any], ...]
    """path, size and blake2b digest of the report and of what describes the data files."""
    extra: Mapping[str, Any]


class SubsetWriter:
    """Takes the rows of a subset in order and publishes them; use as a context manager.

    `done` is the manifest where the subset is complete already: then there is nothing to write. The stored layout
    (`rows_per_file`) of a run that is gone on with wins over the one in `spec`. Files may as well be written by
    others, through `FileWriter` and `spec`, and handed in as the records that gave.

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
        self.spec = dataclasses.replace(
            spec, schema=self._schema, fingerprint=stored["fingerprint"], rows_per_file=stored["rows_per_file"]
        )
        self.done: SubsetManifest | None = open_subset(fs, root)
        self._num_taken = 0
        self._files: list[dict[str, Any]] = []
        self._file: FileWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what lies on local disk; published files stay."""
        if self._file is not None:
            self._file.close()
            self._file = None

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
        if self._num_taken + table.num_rows > self.spec.num_rows:
            raise self._row_error(f"at least {self._num_taken + table.num_rows}")
        while table.num_rows:
            if self._file is None:
                self._file = FileWriter(self._fs, self._root, self.spec, self._num_taken // self.spec.rows_per_file)
            fits = table.slice(0, self._file.num_missing)
            self._file.write(fits)
            self._num_taken += fits.num_rows
            table = table.slice(fits.num_rows)
            if not self._file.num_missing:
                self.add(self._file.publish())
                self.close()

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in files that `FileWriter` published."""
        self._files += [dict(record) for record in records]

    def finish(self, *, report: Mapping[str, Any], extra: Mapping[str, Any]) -> SubsetManifest:
        """Publish what remains, then the report and the manifest; the manifest that stands is returned.

        Raises:
            IntegrityError: fewer rows than announced, or files of other content stand in the way.
        """
        if self.spec.num_rows == 0 and not self._files:
            with FileWriter(self._fs, self._root, self.spec, 0) as file:
                self.add(file.publish())
        num_rows = sum(file["num_rows"] for file in self._files)
        if num_rows != self.spec.num_rows * len(self.spec.formats):
            raise self._row_error(str(max(self._num_taken, num_rows // len(self.spec.formats))))
        files = tuple(sorted(self._files, key=lambda file: str(file["path"])))
        described = hf_descriptions(self._schema, files, self.spec.fingerprint) if "hf" in self.spec.formats else {}
        manifest = SubsetManifest(
            version=self.spec.version,
            config=self.spec.config,
            fingerprint=self.spec.fingerprint,
            num_rows=self.spec.num_rows,
            files=files,
            beside=tuple(publish_beside(self._fs, self._root, {**described, REPORT_FILE: sealed(report)})),
            extra=extra,
        )
        value = {"kind": "subset", **dataclasses.asdict(manifest), "schema": schema_json(self._schema)}
        if create(self._fs, f"{self._root}/{MANIFEST_FILE}", sealed(value)):
            return manifest
        stored = open_subset(self._fs, self._root)
        if stored is None or stored.files != manifest.files:
            raise IntegrityError(f"{display(self._fs, self._root)} holds a subset of other content. Use another path.")
        return stored

    def _row_error(self, got: str) -> IntegrityError:
        return IntegrityError(
            f"{display(self._fs, self._root)}: {got} rows for a subset of {self.spec.num_rows}. The chosen rows must "
            "not change while they are written; select again."
        )


def open_subset(fs: fsspec.AbstractFileSystem, root: str) -> SubsetManifest | None:
    """The manifest of a complete subset whose files are all there; None if it is not complete.

    Raises:
        IntegrityError: files that it names are gone or cut short.
    """
    manifest = load_subset_manifest(fs, root)
    if manifest is not None:
        sizes = list_sizes(fs, root)
        named = (*manifest.files, *manifest.beside)
        lost = [file["path"] for file in named if sizes.get(file["path"]) != file["size"]]
        if lost:
            raise IntegrityError(
                f"{display(fs, root)}: files are gone or cut short: [{listed(lost, show=quoted)}]. Use another path."
            )
    return manifest


def load_subset_manifest(fs: fsspec.AbstractFileSystem, root: str) -> SubsetManifest | None:
    """The manifest of the subset under `root`; None if it is not complete.

    Raises:
        IntegrityError: it is damaged.
    """
    path = f"{root}/{MANIFEST_FILE}"
    value = read_sealed(fs, path)
    if value is None:
        return None
    try:
        own = {field.name: value[field.name] for field in dataclasses.fields(SubsetManifest)}
        return SubsetManifest(**{**own, "files": tuple(own["files"]), "beside": tuple(own["beside"])})
    except (KeyError, TypeError) as error:
        where = display(fs, path)
        raise IntegrityError(f"{where} is damaged or no subset's ({type(error).__name__}).") from None
