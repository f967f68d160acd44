"""Scores of one's own in plain Parquet files, as a source to select from.

For margins or scored columns that other programs wrote: local files, read row group by row group and mapped into memory
only while a group is decoded, so that memory does not grow with them. No manifest stands behind them: the files must
not change while they are selected from.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceError
from pipeline.faults import storage_errors
from pipeline.schema import require_columns
from pipeline.selection.source import sample_size
from pipeline.shown import shown_path

_SAMPLED_GROUPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """A row group of a file; the footer is that of the whole file."""

    path: str
    footer: Any
    index: int
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetScores:
    """Row groups of Parquet files in their order; `open_parquet_scores` finds them."""

    groups: tuple[RowGroup, ...]

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return sum(group.num_rows for group in self.groups)

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows with these columns, a row group at a time.

        Raises:
            SchemaError: a column is missing.
            SourceError: a file is damaged or gone.
        """
        for group in self.groups:
            yield _read(group, columns)

    def split(self, num_parts: int) -> Sequence[tuple[int, "ParquetScores"]]:
        """Runs of row groups of about as many rows each."""
        ends = np.cumsum([group.num_rows for group in self.groups])
        targets = self.num_rows * np.arange(1, num_parts) / num_parts
        cuts = sorted({0, *np.searchsorted(ends, targets, side="right").tolist(), len(self.groups)})
        firsts = [0, *ends.tolist()]
        runs = itertools.pairwise(cuts) if self.groups else iter([(0, 0)])
        return [(firsts[start], ParquetScores(groups=self.groups[start:stop])) for start, stop in runs]

    def sample(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The first rows of evenly spaced row groups; nothing from files that hold hardly more rows."""
        num_rows = sample_size(self.num_rows)
        if self.num_rows < 8 * num_rows:
            return
        num_groups = min(len(self.groups), _SAMPLED_GROUPS)
        for i in range(num_groups):
            group = self.groups[i * len(self.groups) // num_groups]
            yield _read(group, columns, most_rows=-(-num_rows // num_groups))


def open_parquet_scores(paths: Sequence[str | Path]) -> ParquetScores:
    """The rows of these files, in this order.

    Raises:
        SourceError: a file cannot be read.
    """
    groups: list[RowGroup] = []
    for path in map(str, paths):
        try:
            with storage_errors(path):
                footer = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{shown_path(path)} cannot be read as Parquet ({type(error).__name__}).") from None
        sizes = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
        groups += [RowGroup(path=path, footer=footer, index=i, num_rows=size) for i, size in enumerate(sizes) if size]
    return ParquetScores(groups=tuple(groups))


def _read(group: RowGroup, columns: Sequence[str], most_rows: int | None = None) -> pa.Table:
    """The row group, or its first rows, of which only the pages that hold them are decoded."""
    require_columns(
        group.footer.schema.to_arrow_schema(), columns, where=group.path, remedy="Name the columns so in the file."
    )
    try:
        with storage_errors(group.path), pq.ParquetFile(group.path, metadata=group.footer, memory_map=True) as file:
            if most_rows is None:
                return file.read_row_group(group.index, columns=list(columns), use_threads=False)
            batches = file.iter_batches(most_rows, row_groups=[group.index], columns=list(columns), use_threads=False)
            return pa.Table.from_batches([next(batches)])
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{shown_path(group.path)}: row group {group.index} cannot be read ({type(error).__name__}). "
            "Write the file anew."
        ) from None
