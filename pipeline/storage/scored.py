"""A complete scored dataset, read in the order of its parts, as often as needed, in memory that does not grow.

Reads the parts that the manifest names and no others, checks the footer of each against the manifest and the checksum
of every page, and counts the rows: what was committed is what comes out, or an IntegrityError names the file.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema as names
from pipeline.errors import IntegrityError
from pipeline.faults import storage_errors, translated
from pipeline.storage.filesystem import display, in_order, read_range
from pipeline.storage.manifest import Manifest, PartFile
from pipeline.storage.parts import digest, read_footer

_WHOLE_BYTES = 2**20  # a part up to this size is fetched by one request, whatever columns are wanted


@dataclasses.dataclass(frozen=True, slots=True)
class _OpenPart:
    """A part whose footer has been checked; `data` where it was fetched whole."""

    file: PartFile
    metadata: pq.FileMetaData
    data: bytes | None


class ScoredDataset:
    """The rows of a complete scored dataset; `load_manifest` says whether there is one."""

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, manifest: Manifest) -> None:
        self._fs = fs
        self._root = root
        self.manifest = manifest

    @property
    def schema(self) -> pa.Schema:
        """All columns."""
        return self.manifest.schema

    def tables(self, columns: Sequence[str] | None = None, *, scored_only: bool = True) -> Iterator[pa.Table]:
        """The rows in order, a few thousand at a time, with `columns` in the order asked for (None: all).

        Ask for few columns and only those are fetched, but from small parts. Every call starts anew.

        Raises:
            SchemaError: a column is not there.
            IntegrityError: a part is missing, damaged or not the one that was committed.
        """
        wanted = list(self.schema.names if columns is None else columns)
        where = display(self._fs, self._root)
        names.require_columns(self.schema, wanted, where=where, remedy="Name columns of the scored dataset.")
        return self._tables(wanted, scored_only=scored_only)

    def rows(self, first: int, num_rows: int) -> pa.Table:
        """`num_rows` scored rows from `first` on, in the order of the dataset. Raises as `tables`."""
        firsts = np.cumsum([0, *(file.num_scored for file in self.manifest.files)])
        begin = int(np.searchsorted(firsts, first, side="right")) - 1
        end = int(np.searchsorted(firsts, first + num_rows, side="left"))
        tables = self._of(self.manifest.files[begin:end]).tables()
        found = pa.concat_tables([self.schema.empty_table(), *tables])
        return found.slice(first - int(firsts[begin]), num_rows)

    def split(self, num_parts: int) -> list[tuple[int, "ScoredDataset"]]:
        """About `num_parts` runs of consecutive part files, each with the position of its first scored row."""
        files = self.manifest.files
        firsts = np.concatenate([[0], np.cumsum([file.num_scored for file in files], dtype=np.int64)])
        targets = firsts[-1] * np.arange(1, num_parts) / num_parts
        cuts = sorted({0, len(files), *np.searchsorted(firsts, targets).tolist()})
        runs = [(start, stop) for start, stop in itertools.pairwise(cuts) if stop > start] or [(0, 0)]
        return [(int(firsts[start]), self._of(files[start:stop])) for start, stop in runs]

    def take(self, positions: NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.Table]:
        """The scored rows at ascending positions, with `columns`. Raises as `tables`."""
        num_found = 0
        for first, piece in self.split(len(self.manifest.files)):
            stop = first + piece.manifest.num_scored
            there = positions[np.searchsorted(positions, first) : np.searchsorted(positions, stop)] - first
            if there.size:
                num_found += there.size
                yield pa.concat_tables(piece.tables(columns)).take(pa.array(there))
        if not num_found:
            yield self.schema.empty_table().select(list(columns))

    def _of(self, files: Sequence[PartFile]) -> "ScoredDataset":
        num_scored, num_rows = sum(file.num_scored for file in files), sum(file.num_rows for file in files)
        manifest = dataclasses.replace(self.manifest, files=tuple(files), num_rows=num_rows, num_scored=num_scored)
        return ScoredDataset(self._fs, self._root, manifest)

    def _tables(self, wanted: list[str], *, scored_only: bool) -> Iterator[pa.Table]:
        def groups() -> Iterator[tuple[_OpenPart, int]]:
            for part in in_order(self._open, self.manifest.files):
                yield from ((part, index) for index in range(part.metadata.num_row_groups))

        def read(group: tuple[_OpenPart, int]) -> tuple[_OpenPart, int, pa.Table]:
            return (*group, self._rows(*group, wanted, scored_only=scored_only))

        num_left = 0
        for part, index, rows in in_order(read, groups()):
            expected = part.file.num_scored if scored_only else part.file.num_rows
            num_left = (expected if index == 0 else num_left) - rows.num_rows
            if index == part.metadata.num_row_groups - 1 and num_left:
                raise self._damaged(part.file, f"{expected - num_left} rows where {expected} were committed")
            if rows.num_rows:
                yield rows.select(wanted)

    def _rows(self, part: _OpenPart, group: int, wanted: list[str], *, scored_only: bool) -> pa.Table:
        """Rows of a row group; their status is read where the manifest says that some were dropped."""
        some_dropped = scored_only and part.file.num_scored < part.file.num_rows
        read = list(dict.fromkeys([*wanted, names.STATUS])) if some_dropped or not wanted else wanted
        table = self._read(part, group, read)
        return table.filter(pc.equal(table[names.STATUS], names.SCORED)) if some_dropped else table

    def _open(self, file: PartFile) -> _OpenPart:
        path = f"{self._root}/{file.path}"
        data = read_range(self._fs, path, 0, file.size) if file.size <= _WHOLE_BYTES else None
        footer = _footer_of(data) if data is not None else read_footer(self._fs, path, file.size)
        if digest(footer) != file.footer_digest:
            raise self._damaged(file, "its footer is not the one that was committed")
        return _OpenPart(file, pq.read_metadata(pa.BufferReader(footer)), data)

    def _read(self, part: _OpenPart, group: int, columns: list[str]) -> pa.Table:
        path = f"{self._root}/{part.file.path}"
        where = display(self._fs, path)
        try:
            with storage_errors(where), self._source(part, path) as source:
                reader = pq.ParquetFile(
                    source, metadata=part.metadata, page_checksum_verification=True, pre_buffer=part.data is None
                )
                return reader.read_row_group(group, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            if translated(error, where) is not None:
                raise
            raise self._damaged(part.file, f"row group {group} cannot be decoded") from None

    def _source(self, part: _OpenPart, path: str) -> Any:
        if part.data is not None:
            return pa.BufferReader(part.data)
        return self._fs.open(path, "rb", size=part.file.size, cache_type="none")

    def _damaged(self, file: PartFile, problem: str) -> IntegrityError:
        where = display(self._fs, f"{self._root}/{file.path}")
        return IntegrityError(f"{where} is damaged: {problem}. Restore it, or score again under another path.")


def _footer_of(data: bytes) -> bytes:
    return data[-(int.from_bytes(data[-8:-4], "little") + 8) :]
