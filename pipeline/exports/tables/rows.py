"""The rows to publish, and the Parquet files that hold them: those of the subset, or new ones on local disk."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import config, schema
from pipeline.data.commit import create_from_file
from pipeline.data.dataset import Dataset
from pipeline.data.files import fetch_file
from pipeline.data.manifest import SUBSET, File
from pipeline.data.place import Place
from pipeline.data.sealed import fingerprint_digest
from pipeline.errors import ConfigError, IntegrityError, SchemaError
from pipeline.exports.parquet import write_parquet
from pipeline.scratch import scratch_folder
from pipeline.shown import listed, shown

_INTERNAL: Final = (schema.CONTENT_DIGEST, *(field.name for field in schema.STATUS_FIELDS))


@dataclass(frozen=True, slots=True)
class Piece:
    """A Parquet file of the rows."""

    folder: Place
    file: File
    name: str
    """What a copy of it is called: the same rows always get the same names, and other bytes another one."""

    @property
    def place(self) -> Place:
        """Where it lies."""
        return self.folder / self.file.path


class Rows:
    """The kept rows of a complete dataset, of a subset those of one split.

    Files that must be written are, on local disk, until `stack` is closed.

    partition: the values of the columns that the table is partitioned by. Rows that lack such a column get it, in files
    that are written for the table.
    """

    def __init__(
        self, dataset: Dataset, split: str, stack: ExitStack, partition: Mapping[str, pa.Scalar] | None = None
    ) -> None:
        is_subset = dataset.manifest.kind == SUBSET
        splits = [*dataset.splits] if is_subset else [schema.TRAIN]
        if split not in splits:
            raise ConfigError(f"{dataset.place} has no split {shown(split)}; it has {listed(splits)}.")
        self.mark = dataset.identity if split == schema.TRAIN else fingerprint_digest({dataset.identity: split})
        """Tells these rows, in their partition, from others."""
        self.partition = dict(partition or {})
        self.partition_texts = {name: str(value.cast(pa.string())) for name, value in self.partition.items()}
        self.partition_key = json.dumps(self.partition_texts) if self.partition else ""
        """Tells the partition from others of the table; empty if there is none."""
        if self.partition:
            self.mark = fingerprint_digest({self.mark: self.partition_texts})
        dataset = dataset.of_split(split) if is_subset else dataset
        self._dataset, self._stack = dataset, stack
        self.num_rows = dataset.num_kept
        names = dataset.schema.names
        columns = names if is_subset else [name for name in names if name not in _INTERNAL]
        self._columns = columns
        self._added = {name: value for name, value in self.partition.items() if name not in columns}
        fields = [dataset.schema.field(name) for name in columns]
        self.schema: pa.Schema = pa.schema([*fields, *((name, value.type) for name, value in self._added.items())])
        uses_files = is_subset and not self.partition
        files = [file for file in dataset.manifest.files if uses_files and file.path.startswith("parquet/")]
        self._of_subset = sorted(files, key=lambda file: file.path)

    @property
    def lie_in_subset(self) -> bool:
        """Whether the files are those of the subset, which stay there."""
        return bool(self._of_subset)

    @cached_property
    def pieces(self) -> list[Piece]:
        """The files, in the order of the rows."""
        if self._of_subset:
            return [self._piece(self._dataset.place, index, file) for index, file in enumerate(self._of_subset)]
        folder = self._stack.enter_context(scratch_folder("publish"))
        place = Place.open(str(folder), config.Storage())
        paths = write_parquet(self._dataset, self._columns, folder, self._added)
        return [self._piece(place, index, _described(path)) for index, path in enumerate(paths)]

    def batches(self, columns: Sequence[str]) -> pa.RecordBatchReader:
        """The rows in order, with these columns; read anew at each call."""
        wanted = pa.schema([self.schema.field(name) for name in columns])
        tables = self._dataset.tables(columns)
        batches = (batch for table in tables for batch in table.cast(wanted).to_batches())
        return pa.RecordBatchReader.from_batches(wanted, batches)

    def check_partition(self, where: str) -> None:
        """Raise a SchemaError if rows have another value than that of the partition."""
        for name, value in self.partition.items():
            if name in self._added:
                continue
            for table in self._dataset.tables([schema.ID, name]):
                is_same = pc.fill_null(pc.equal(table[name].cast(value.type), value), fill_value=False)
                others = table.filter(pc.invert(is_same))
                if others.num_rows:
                    raise SchemaError(
                        f"{where}: the partition has {name} {shown(self.partition_texts[name])}, and rows have another "
                        f"{name}, such as row {shown(others[schema.ID][0].as_py())}. Publish only rows of the "
                        "partition, as source.where of a selection for it takes them."
                    )

    def are_all(self, files: Iterable[tuple[str, int]]) -> bool:
        """Whether files of a partition, by path and number of rows, are those that were written for these rows."""
        files = [*files]
        ours = all(self._prefix in path.rpartition("/")[2] for path, _ in files)
        return ours and bool(files) and sum(num_rows for _, num_rows in files) == self.num_rows

    def copy(self, piece: Piece, target: Place) -> None:
        """Create a copy of the file, unless it is there.

        Raises:
            IntegrityError: a damaged one is there.
        """
        if target.size() == piece.file.size:
            return
        with self.local(piece) as path:
            if not create_from_file(target, path) and target.size() != piece.file.size:
                raise IntegrityError(f"{target} is damaged: it has another size than when it was written. Remove it.")

    @contextlib.contextmanager
    def local(self, piece: Piece) -> Iterator[Path]:
        """The file on local disk."""
        if piece.place.is_local:
            yield Path(piece.place.root)
            return
        with scratch_folder("publish") as folder:
            path = folder / "piece.parquet"
            fetch_file(piece.folder, piece.file, path)
            yield path

    def _piece(self, folder: Place, index: int, file: File) -> Piece:
        return Piece(folder, file, f"{self._prefix}-{index:05d}-{file.digest[:16]}.parquet")

    @property
    def _prefix(self) -> str:
        return f"alignpot-{self.mark[:16]}"


def _described(path: Path) -> File:
    num_rows = pq.read_metadata(path).num_rows
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return File(path=path.name, num_rows=num_rows, num_kept=num_rows, size=path.stat().st_size, digest=digest)
