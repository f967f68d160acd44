"""Writes the rows that a selection keeps: one task a file, each reading the parts that its rows lie in."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.data.files import write_file
from pipeline.data.manifest import File
from pipeline.data.run import Plan, Run
from pipeline.selection.selection import Selection
from pipeline.selection.source import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPart:
    """A part of the scored dataset, and which rows of the subset come from it."""

    part: Part
    rows: range


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTask:
    """Writes one file of the subset; picklable.

    columns: of the scored dataset, to be read for the subset.
    """

    run: Run
    selection: Selection
    columns: tuple[str, ...]

    def __call__(self, file: tuple[int, Sequence[KeptPart]]) -> list[File]:
        """Publish the file of this index from the parts that it needs."""
        index, parts = file
        wanted = rows_of(self.run.plan, index)
        return write_file(self.run, index, (table for kept in parts for table in self._slices(kept, wanted)))

    def _slices(self, kept: KeptPart, wanted: range) -> Iterator[pa.Table]:
        """The rows of a part that belong to the file."""
        position = kept.rows.start
        for table in self._kept_rows(kept.part):
            start, stop = max(position, wanted.start), min(position + table.num_rows, wanted.stop)
            if start < stop:
                yield table.slice(start - position, stop - start)
            position += table.num_rows
            if position >= wanted.stop:
                return

    def _kept_rows(self, part: Part) -> Iterator[pa.Table]:
        first_row = part.first_row
        for table in part.source.tables(list(dict.fromkeys([*self.columns, *self.selection.columns]))):
            kept = self.selection.apply(table, first_row=first_row)
            yield kept.select(self.run.plan.schema.names).cast(self.run.plan.schema)
            first_row += table.num_rows


def files_of(plan: Plan, parts: Sequence[Part], num_kept: Sequence[int]) -> list[tuple[int, list[KeptPart]]]:
    """The files of a subset with the parts that each reads, given how many rows of each part are kept."""
    ends = list(itertools.accumulate(num_kept))
    kept = [
        KeptPart(part=part, rows=range(end - num, end))
        for part, num, end in zip(parts, num_kept, ends, strict=True)
        if num
    ]
    files: list[tuple[int, list[KeptPart]]] = []
    for index in range(len(plan.shards)):
        rows = rows_of(plan, index)
        files.append((index, [k for k in kept if k.rows.start < rows.stop and rows.start < k.rows.stop]))
    return files


def rows_of(plan: Plan, index: int) -> range:
    """The rows that a file holds, counted over the subset."""
    shard = plan.shards[index]
    return range(shard["first_row"], shard["first_row"] + shard["num_rows"])
