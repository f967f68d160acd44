"""A complete dataset of ours, read in its order, as often as needed, in memory that does not grow.

It is opened by its manifest. The files that the manifest names are read and no others: what was committed is what comes
out, or an IntegrityError names the file. Parts are read by column and row group, with the footer checked against the
manifest and every page against its checksum. Files written for others (subsets, exports) are copied to local disk and
their digest is compared before a row is used.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema as names
from pipeline.data.files import local_tables, rows_of_formats
from pipeline.data.manifest import EXPORT, SCORED, SUBSET, File, Manifest, check_sizes, find_manifest
from pipeline.data.parts import PARTS_FOLDER, digest, footer_of, read_footer
from pipeline.data.place import Place, in_order
from pipeline.data.run import Run, find_plan
from pipeline.errors import IntegrityError, SourceError
from pipeline.faults import storage_errors, translated

_WHOLE_BYTES = 2**20  # a part up to this size is fetched by one request, whatever columns are wanted
_REMEDIES = {
    SCORED: "Run `alignpot score` with its config, or correct `scored`.",
    SUBSET: "Give the folder that `alignpot select` or `run` wrote, once it is complete.",
    EXPORT: "Give the folder that `alignpot export` wrote, once it is complete.",
}

Positions = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class _OpenPart:
    """A part whose footer has been checked; `data` where it was fetched whole."""

    file: File
    metadata: pq.FileMetaData
    data: bytes | None


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """The rows of a complete dataset, or of some of its files; picklable."""

    place: Place
    manifest: Manifest

    @classmethod
    def open(cls, place: Place, kind: str = SCORED) -> "Dataset":
        """The dataset of that kind at `place`.

        Raises:
            SourceError: there is none, because nothing was begun there or because the run is not complete.
            IntegrityError: it is damaged, or files are gone.
        """
        found = cls.find(place, kind)
        if found is None:
            raise SourceError(_why_missing(place, kind))
        return found

    @classmethod
    def find(cls, place: Place, kind: str = SCORED) -> "Dataset | None":
        """The same, or None if there is none. Raises as `open`."""
        manifest = find_manifest(place, kind)
        if manifest is not None and manifest.beside:
            check_sizes(place, manifest)
        return None if manifest is None else cls(place, manifest)

    @property
    def schema(self) -> pa.Schema:
        """All columns."""
        return self.manifest.schema

    @property
    def num_kept(self) -> int:
        """Rows that were not dropped."""
        return self.manifest.num_kept

    def tables(self, columns: Sequence[str] | None = None, *, kept_only: bool = True) -> Iterator[pa.Table]:
        """The rows in order, a few thousand at a time, with `columns` in the order asked for (None: all).

        Ask for few columns and only those are fetched, except from small parts. Every call starts anew.

        Raises:
            SchemaError: a column is not there.
            IntegrityError: a file is missing, damaged or not the one that was committed.
        """
        wanted = self._columns(columns)
        if not self._has_parts:
            return (table.select(wanted) for table in self._whole_files())
        return self._part_tables(wanted, kept_only=kept_only)

    def take(self, positions: Positions, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The kept rows at ascending positions, of which only the row groups that hold some are read.

        Raises as `tables`.
        """
        wanted = self._columns(columns)
        if not self._has_parts:
            return self._taken(positions, self.tables(wanted))
        firsts = np.cumsum([0, *(file.num_kept for file in self.manifest.files)])
        cuts = np.searchsorted(positions, firsts)
        some = [
            (file, positions[start:stop] - first)
            for file, first, start, stop in zip(self.manifest.files, firsts, cuts[:-1], cuts[1:], strict=False)
            if stop > start
        ]
        return itertools.chain.from_iterable(in_order(lambda each: self._take_from(*each, wanted), some))

    def rows(self, first: int, num_rows: int) -> pa.Table:
        """`num_rows` kept rows from `first` on. Raises as `tables`."""
        tables = self.take(np.arange(first, first + num_rows, dtype=np.int64))
        return pa.concat_tables([self.schema.empty_table(), *tables])

    def split(self, num_parts: int) -> list[tuple[int, "Dataset"]]:
        """About `num_parts` runs of consecutive files, each with the position of its first kept row."""
        files = self.manifest.files if self._has_parts else rows_of_formats(self.manifest)
        firsts = np.concatenate([[0], np.cumsum([file.num_kept for file in files], dtype=np.int64)])
        targets = firsts[-1] * np.arange(1, num_parts) / num_parts
        cuts = sorted({0, len(files), *np.searchsorted(firsts, targets).tolist()})
        runs = [(start, stop) for start, stop in itertools.pairwise(cuts) if stop > start] or [(0, 0)]
        return [(int(firsts[start]), self._of(files[start:stop])) for start, stop in runs]

    @property
    def content(self) -> str:
        """What identifies the rows: a digest of the digests of all files."""
        return digest("".join(file.digest for file in self.manifest.files).encode())

    @property
    def _has_parts(self) -> bool:
        return all(file.path.startswith(f"{PARTS_FOLDER}/") for file in self.manifest.files)

    def _columns(self, columns: Sequence[str] | None) -> list[str]:
        wanted = list(self.schema.names if columns is None else columns)
        names.require_columns(self.schema, wanted, where=str(self.place), remedy="Name columns of the dataset.")
        return wanted

    def _of(self, files: Sequence[File]) -> "Dataset":
        sums = {name: sum(getattr(file, name) for file in files) for name in ("num_rows", "num_kept")}
        return Dataset(self.place, dataclasses.replace(self.manifest, files=tuple(files), **sums))

    def _whole_files(self) -> Iterator[pa.Table]:
        files = rows_of_formats(self.manifest)
        if sum(file.num_rows for file in files) != self.manifest.num_rows:
            raise IntegrityError(f"{self.place}: the files do not hold the rows of the manifest. Use another path.")
        for file in files:
            yield from local_tables(self.place, file)

    def _taken(self, positions: Positions, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        first = 0
        for table in tables:
            start, stop = np.searchsorted(positions, [first, first + table.num_rows])
            if stop > start:
                yield table.take(positions[start:stop] - first)
            first += table.num_rows

    def _part_tables(self, wanted: list[str], *, kept_only: bool) -> Iterator[pa.Table]:
        def groups() -> Iterator[tuple[_OpenPart, int]]:
            for part in in_order(self._open, self.manifest.files):
                yield from ((part, index) for index in range(part.metadata.num_row_groups))

        def read(group: tuple[_OpenPart, int]) -> tuple[_OpenPart, int, pa.Table]:
            return (*group, self._rows(*group, wanted, kept_only=kept_only))

        num_left = 0
        for part, index, rows in in_order(read, groups()):
            expected = part.file.num_kept if kept_only else part.file.num_rows
            num_left = (expected if index == 0 else num_left) - rows.num_rows
            if index == part.metadata.num_row_groups - 1 and num_left:
                raise self._damaged(part.file, f"{expected - num_left} rows where {expected} were committed")
            if rows.num_rows:
                yield rows.select(wanted)

    def _rows(self, part: _OpenPart, group: int, wanted: list[str], *, kept_only: bool) -> pa.Table:
        """Rows of a row group; their status is read where the manifest says that some were dropped."""
        some_dropped = kept_only and part.file.num_kept < part.file.num_rows
        read = list(dict.fromkeys([*wanted, names.STATUS])) if some_dropped or not wanted else wanted
        table = self._read(part, [group], read)
        return table.filter(pc.equal(table[names.STATUS], names.KEPT)) if some_dropped else table

    def _take_from(self, file: File, kept: Positions, wanted: list[str]) -> list[pa.Table]:
        """Kept rows of one part, by their positions among the kept ones."""
        part = self._open(file)
        rows = kept
        if file.num_kept < file.num_rows:
            status = self._read(part, range(part.metadata.num_row_groups), [names.STATUS])[names.STATUS]
            all_kept = np.flatnonzero(pc.equal(status, names.KEPT).to_numpy())
            if len(all_kept) != file.num_kept:
                raise self._damaged(file, f"{len(all_kept)} rows where {file.num_kept} were committed")
            rows = all_kept[kept]
        sizes = [part.metadata.row_group(index).num_rows for index in range(part.metadata.num_row_groups)]
        cuts = np.searchsorted(rows, np.cumsum([0, *sizes]))
        found, first = [], 0
        for index, (start, stop) in enumerate(itertools.pairwise(cuts.tolist())):
            if stop > start:
                found.append(self._read(part, [index], wanted).take(rows[start:stop] - first))
            first += sizes[index]
        return found

    def _open(self, file: File) -> _OpenPart:
        place = self.place / file.path
        data = place.read_range(0, file.size) if file.size <= _WHOLE_BYTES else None
        footer = footer_of(data) if data is not None else read_footer(place, file.size)
        if digest(footer) != file.digest:
            raise self._damaged(file, "its footer is not the one that was committed")
        return _OpenPart(file, pq.read_metadata(pa.BufferReader(footer)), data)

    def _read(self, part: _OpenPart, groups: Sequence[int], columns: list[str]) -> pa.Table:
        place = self.place / part.file.path
        try:
            with storage_errors(str(place)), _source(part, place) as source:
                reader = pq.ParquetFile(
                    source, metadata=part.metadata, page_checksum_verification=True, pre_buffer=part.data is None
                )
                return reader.read_row_groups(list(groups), columns=columns, use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            if translated(error, str(place)) is not None:
                raise
            raise self._damaged(part.file, f"row group {list(groups)} cannot be decoded") from None

    def _damaged(self, file: File, problem: str) -> IntegrityError:
        return IntegrityError(
            f"{self.place / file.path} is damaged: {problem}. Restore it, or make the dataset again under another path."
        )


def _source(part: _OpenPart, place: Place) -> Any:
    if part.data is not None:
        return pa.BufferReader(part.data)
    return place.fs.open(place.root, "rb", size=part.file.size, cache_type="none")


def _why_missing(place: Place, kind: str) -> str:
    plan = find_plan(place, kind)
    remedy = _REMEDIES.get(kind, "Run `alignpot self-play` with its config.")
    if plan is None:
        return f"{place} holds no dataset of kind {kind}. {remedy}"
    num_done = len(plan.shards) - len(Run(place, plan).pending())
    done = "" if plan.formats else f" ({num_done} of {len(plan.shards)} parts)"
    return f"{place} holds an unfinished dataset of kind {kind}{done}. {remedy}"
