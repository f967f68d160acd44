"""Reads a complete dataset of alignpot in its order, as often as needed, in constant memory.

It is opened by its manifest. Only files that the manifest names are read, and rows come out as they were committed, or
an IntegrityError names the file. Parquet (all parts, and subsets that have it) is read by column and row group; the
footer is checked against the manifest, every page against its checksum. A subset that has Arrow files only is copied to
local disk, and its digest is compared before a row is used.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema as names
from pipeline.data.files import arrow_tables, rows_by_split, split_of
from pipeline.data.lazy import last_sealed
from pipeline.data.manifest import EXPORT, REWARDED, SCORED, SUBSET, File, Manifest, find_manifest
from pipeline.data.parts import footer_bytes, read_footer
from pipeline.data.place import Place, in_order
from pipeline.data.records import Records
from pipeline.data.run import Run, find_plan
from pipeline.data.sealed import digest, fingerprint_digest
from pipeline.errors import IntegrityError, SourceError
from pipeline.faults import storage_errors, translated
from pipeline.shown import listed, quoted

_WHOLE_BYTES = 2**20  # a part up to this size is fetched by one request, all columns included
_HOLDERS = ("formats", "layout")
_REMEDIES = {
    SCORED: "Run `alignpot score` with its config, or correct `scored`.",
    REWARDED: "Run `alignpot reward` with its config, or correct `rewarded`.",
    SUBSET: "Give the folder that `alignpot select` or `run` wrote, once it is complete.",
    EXPORT: "Give the folder that `alignpot export` wrote, once it is complete.",
}

Positions = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class _OpenPart:
    """A part whose footer has been checked. data: all of it, if it is small."""

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
        """The same, or None if there is none. Raises as `open`.

        Of a lazy run it is the scored dataset made last.
        """
        manifest = find_manifest(place, kind, or_lazy=kind == SCORED)
        if manifest is not None and manifest.kind != kind:
            place = last_sealed(place)
            manifest = find_manifest(place, kind)
        if manifest is None:
            return None
        if manifest.beside:
            sizes = place.sizes()
            lost = [file.path for file in (*manifest.files, *manifest.beside) if sizes.get(file.path) != file.size]
            if lost:
                raise IntegrityError(
                    f"{place}: files are gone or cut short: [{listed(lost, show=quoted)}]. Use another path."
                )
        return cls(place, manifest)

    @property
    def schema(self) -> pa.Schema:
        """All columns."""
        return self.manifest.schema

    @property
    def num_kept(self) -> int:
        """Rows that were not dropped."""
        return self.manifest.num_kept

    @property
    def identity(self) -> str:
        """A digest of what decides the rows: of the fingerprint, but not of the formats and files that hold them."""
        fingerprint = self.manifest.fingerprint
        return fingerprint_digest({name: fingerprint[name] for name in fingerprint if name not in _HOLDERS})

    def tables(self, columns: Sequence[str] | None = None, *, kept_only: bool = True) -> Iterator[pa.Table]:
        """The rows in order, a few thousand at a time, with `columns` in the order asked for (None: all).

        Ask for few columns and only those are fetched, except from small parts. Every call starts anew.

        Raises:
            SchemaError: a column is not there.
            IntegrityError: a file is missing, damaged or not the one that was committed.
        """
        wanted = self._columns(columns)
        files = self._files()
        if not all(file.footer_digest for file in files):
            return (table.select(wanted) for file in files for table in arrow_tables(self.place, file))
        return self._part_tables(files, wanted, kept_only=kept_only)

    def take(
        self, positions: Positions, columns: Sequence[str] | None = None, *, kept_only: bool = True
    ) -> Iterator[pa.Table]:
        """The rows at ascending positions among the kept ones or all; only row groups that hold some are read.

        Raises as `tables`.
        """
        wanted = self._columns(columns)
        files = self._files()
        if not all(file.footer_digest for file in files):
            return _taken(positions, self.tables(wanted))
        firsts = np.cumsum([0, *(file.num_kept if kept_only else file.num_rows for file in files)])
        cuts = np.searchsorted(positions, firsts)
        some = (
            (file if kept_only else dataclasses.replace(file, num_kept=file.num_rows), positions[start:stop] - first)
            for file, first, start, stop in zip(files, firsts[:-1], cuts[:-1], cuts[1:], strict=True)
            if stop > start
        )
        return itertools.chain.from_iterable(in_order(lambda each: self._take_from(*each, wanted), some))

    def rows(self, first: int, num_rows: int, columns: Sequence[str] | None = None) -> pa.Table:
        """`num_rows` kept rows from `first` on. Raises as `tables`."""
        return self._whole(self.take(np.arange(first, first + num_rows, dtype=np.int64), columns), columns)

    def table(self, columns: Sequence[str] | None = None, *, kept_only: bool = True) -> pa.Table:
        """All rows in memory. Raises as `tables`."""
        return self._whole(self.tables(columns, kept_only=kept_only), columns)

    def part(self, index: int) -> pa.Table:
        """All rows of one file, dropped ones too, in memory. Raises as `tables`."""
        return self._of_files(self._files()[index : index + 1]).table(kept_only=False)

    def split(self, num_parts: int) -> list[tuple[int, "Dataset"]]:
        """About `num_parts` runs of consecutive files, each with the position of its first kept row."""
        files = self._files()
        firsts = np.concatenate([[0], np.cumsum([file.num_kept for file in files], dtype=np.int64)])
        targets = firsts[-1] * np.arange(1, num_parts) / num_parts
        cuts = sorted({0, len(files), *np.searchsorted(firsts, targets).tolist()})
        pieces = []
        for start, stop in [*itertools.pairwise(cuts)] or [(0, 0)]:
            pieces.append((int(firsts[start]), self._of_files(files[start:stop])))
        return pieces

    @property
    def splits(self) -> dict[str, int]:
        """Rows by split, one split after another; all are of `train` if none is held out."""
        return rows_by_split(self._files())

    def of_split(self, name: str) -> "Dataset":
        """The rows of one split."""
        return self._of_files(self._files().where(lambda file: split_of(file) == name))

    def has_values(self, column: str) -> bool:
        """Whether a row, kept or dropped, has a value in this column; told by the footers of parts."""
        files = self._files()
        if not all(file.footer_digest for file in files):
            return any(table[column].null_count < table.num_rows for table in self.tables([column]))
        return any(_has_values(part.metadata, column) for part in in_order(self._open, files))

    @property
    def content(self) -> str:
        """What identifies the rows: a digest of the digests of all files."""
        return digest("".join(file.digest or file.footer_digest for file in self._files()).encode())

    def _of_files(self, files: Records[File]) -> "Dataset":
        sums = {name: sum(getattr(file, name) for file in files) for name in ("num_rows", "num_kept")}
        return Dataset(self.place, dataclasses.replace(self.manifest, files=files, **sums))

    def _files(self) -> Records[File]:
        """The files to read the rows from: of formats that hold the same rows, Parquet before Arrow."""
        listed_files = self.manifest.files
        files = listed_files.where(lambda file: file.footer_digest != "")
        files = files or listed_files.where(lambda file: file.path.startswith("hf/"))
        if sum(file.num_rows for file in files) != self.manifest.num_rows:
            raise IntegrityError(f"{self.place}: the files do not hold the rows of the manifest. Use another path.")
        return files

    def _whole(self, tables: Iterable[pa.Table], columns: Sequence[str] | None) -> pa.Table:
        return pa.concat_tables([self.schema.empty_table().select(self._columns(columns)), *tables])

    def _columns(self, columns: Sequence[str] | None) -> list[str]:
        wanted = list(self.schema.names if columns is None else columns)
        names.require_columns(self.schema, wanted, where=str(self.place), remedy="Name columns of the dataset.")
        return wanted

    def _part_tables(self, files: Sequence[File], wanted: list[str], *, kept_only: bool) -> Iterator[pa.Table]:
        def groups() -> Iterator[tuple[_OpenPart, int]]:
            for part in in_order(self._open, files):
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
        """Rows of a row group; their status is read only if the manifest says that some were dropped."""
        some_dropped = kept_only and part.file.num_kept < part.file.num_rows
        read = list(dict.fromkeys([*wanted, names.STATUS])) if some_dropped else wanted or self.schema.names[:1]
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
        footer = read_footer(place, file.size) if data is None else data[-footer_bytes(data) :]
        if digest(footer) != file.footer_digest:
            raise self._damaged(file, "its footer is not the one that was committed")
        return _OpenPart(file, pq.read_metadata(pa.BufferReader(footer)), data)

    def _read(self, part: _OpenPart, groups: Sequence[int], columns: list[str]) -> pa.Table:
        place = self.place / part.file.path
        try:
            with storage_errors(str(place)), _opened(part, place) as source:
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


def _has_values(metadata: pq.FileMetaData, column: str) -> bool:
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        for chunk in (group.column(i) for i in range(group.num_columns)):
            is_it = chunk.path_in_schema.partition(".")[0] == column
            if is_it and (chunk.statistics is None or chunk.statistics.null_count < chunk.num_values):
                return True
    return False


def _taken(positions: Positions, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    first = 0
    for table in tables:
        start, stop = np.searchsorted(positions, [first, first + table.num_rows])
        if stop > start:
            yield table.take(positions[start:stop] - first)
        first += table.num_rows


def _opened(part: _OpenPart, place: Place) -> Any:
    if part.data is not None:
        return pa.BufferReader(part.data)
    return place.fs.open(place.root, "rb", size=part.file.size, cache_type="none")


def _why_missing(place: Place, kind: str) -> str:
    plan = find_plan(place, kind, or_lazy=kind == SCORED)
    remedy = _REMEDIES.get(kind, "Run `alignpot self-play` with its config.")
    if plan is None:
        return f"{place} holds no dataset of kind {kind}. {remedy}"
    if plan.kind != kind:
        return f"{place} holds an unfinished lazy run. {remedy}"
    num_done = len(plan.shards) - len(Run(place, plan).pending())
    done = "" if plan.formats else f" ({num_done} of {len(plan.shards)} parts)"
    return f"{place} holds an unfinished dataset of kind {kind}{done}. {remedy}"
