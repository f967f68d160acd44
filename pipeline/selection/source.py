"""What selection reads: scored rows, streamed in a fixed order as often as it asks.

Selection passes over its source a few times and holds one block of it at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import IntegrityError
from pipeline.schema import require_columns

Positions = npt.NDArray[np.int64]

BLOCK_ROWS: Final = 2**15
"""Rows worked on at a time: a handful of float64 arrays of them fit the second-level cache."""


class ScoreSource(Protocol):
    """Scored rows that can be read again and again, always the same rows in the same order."""

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The scored rows, dropped ones left out, with at least the named columns."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSource:
    """A table in memory as a source."""

    table: pa.Table

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The table's columns of these names, as one table.

        Raises:
            SchemaError: a column is missing.
        """
        _check(self.table, columns)
        yield self.table.select(list(columns))


def blocks(source: ScoreSource, columns: Sequence[str], duplicates: Positions) -> Iterator[pa.RecordBatch]:
    """The source's rows in blocks of at most BLOCK_ROWS, without those at the positions `duplicates`.

    duplicates: ascending 0-based positions in the stream of all rows the source gives.

    Raises:
        SchemaError: a table of the source lacks one of the columns.
        IntegrityError: after the last block, `duplicates` does not ascend or reaches past the rows.
    """
    position = 0
    for block in _even_blocks(source, list(dict.fromkeys(columns))):
        keep = unique_rows(position, block.num_rows, duplicates)
        position += block.num_rows
        yield block if keep is None else block.filter(pa.array(keep))
    if duplicates.size and not (duplicates[0] >= 0 and duplicates[-1] < position and (np.diff(duplicates) > 0).all()):
        raise IntegrityError(
            f"positions of duplicates must ascend within the {position} scored rows, got {duplicates.size} positions "
            f"from {duplicates[0]} to {duplicates[-1]}. Find them in the dataset that is selected from."
        )


def unique_rows(first_row: int, num_rows: int, duplicates: Positions) -> npt.NDArray[np.bool_] | None:
    """Mask of rows first_row to first_row + num_rows that are not at `duplicates`; None where that is all of them."""
    start, stop = np.searchsorted(duplicates, [first_row, first_row + num_rows])
    if start == stop:
        return None
    keep = np.ones(num_rows, dtype=np.bool_)
    keep[duplicates[start:stop] - first_row] = False
    return keep


def _even_blocks(source: ScoreSource, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Blocks near BLOCK_ROWS however small the source's tables are; large ones are cut without a copy."""
    held: list[pa.RecordBatch] = []
    num_held = 0
    for table in source.tables(columns):
        _check(table, columns)
        for batch in table.select(columns).to_batches(max_chunksize=BLOCK_ROWS):
            if held and num_held + batch.num_rows > BLOCK_ROWS:
                yield _joined(held)
                held, num_held = [], 0
            held.append(batch)
            num_held += batch.num_rows
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    # concat_batches copies even a single one.
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _check(table: pa.Table, columns: Sequence[str]) -> None:
    require_columns(
        table.schema, columns, where="selection", remedy="Point `scored` at the output of a finished `alignpot score`."
    )
