"""What selection reads: scored rows, streamed in a fixed order as often as it asks, whole or in parts.

Selection passes over its source a few times and holds one block of it at a time. A part is a run of consecutive rows
that one task reads by itself; results of parts are merged in order, and none depends on where the cuts are.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config import Labels
from pipeline.errors import IntegrityError
from pipeline.metrics.columns import BoolArray
from pipeline.metrics.margins import EXPLICIT_COLUMNS
from pipeline.schema import require_columns
from pipeline.selection.labels import contradicted, swap_sides

Positions: TypeAlias = npt.NDArray[np.int64]

BLOCK_ROWS: Final = 2**16
"""Rows worked on at a time: a handful of float64 arrays of them fit the second-level cache."""


_SAMPLED_RUNS: Final = 64


def no_positions() -> Positions:
    """An empty array of positions."""
    return np.zeros(0, dtype=np.int64)


def sample_size(num_rows: int) -> int:
    """Rows of a sample that a first guess is made from.

    A larger one would cost as much as it saves: what a guess leaves open falls with the root of the sample.
    """
    return max(2**12, int(1.4 * math.pow(num_rows, 2 / 3)))


class ScoreSource(Protocol):
    """Scored rows that can be read again and again, always the same rows in the same order."""

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The scored rows, dropped ones left out, with at least the named columns."""
        ...

    def split(self, num_parts: int) -> Sequence[tuple[int, "ScoreSource"]]:
        """About `num_parts` consecutive pieces, each with the position of its first row; they can be pickled."""
        ...

    def sample(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """About `sample_size` of the scored rows, spread evenly; it may be cheap rather than exact, or empty."""
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
        check_columns(self.table.schema, columns)
        yield self.table.select(list(columns))

    def split(self, num_parts: int) -> Sequence[tuple[int, "ScoreSource"]]:
        """Slices of the table, without a copy."""
        size = max(BLOCK_ROWS, -(-self.table.num_rows // num_parts))
        starts = range(0, max(1, self.table.num_rows), size)
        return [(start, TableSource(table=self.table.slice(start, size))) for start in starts]

    def sample(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Evenly spaced runs of rows, without a copy."""
        check_columns(self.table.schema, columns)
        num_sampled = min(sample_size(self.table.num_rows), self.table.num_rows)
        num_runs = min(_SAMPLED_RUNS, num_sampled)
        for i in range(num_runs):
            start = self.table.num_rows * i // num_runs
            yield self.table.select(list(columns)).slice(start, num_sampled // num_runs)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """A few rows of a part, duplicates left out and labels treated.

    rows: the columns asked for. num_contradicted: rows whose label the reward contradicts, dropped or swapped.
    first_row, kept: positions of the rows are first_row + flatnonzero(kept); kept None stands for all.
    """

    rows: pa.RecordBatch
    first_row: int
    kept: BoolArray | None
    num_contradicted: int = 0

    @property
    def positions(self) -> Positions:
        """Positions of the rows among all scored rows, ascending."""
        if self.kept is None:
            return np.arange(self.first_row, self.first_row + self.rows.num_rows, dtype=np.int64)
        return self.first_row + np.flatnonzero(self.kept)

    def without(self, left_out: Positions) -> BoolArray | None:
        """Mask of the rows that are not at the ascending positions `left_out`; None where that is all of them."""
        num_rows = self.rows.num_rows if self.kept is None else self.kept.size
        mask = unique_rows(self.first_row, num_rows, left_out)
        return mask if mask is None or self.kept is None else mask[self.kept]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Consecutive scored rows that one task reads.

    first_row: position of the first among all scored rows. duplicates: ascending positions of repeats to leave out.
    labels: what becomes of pairs whose label the reward contradicts.
    """

    source: ScoreSource
    first_row: int = 0
    duplicates: Positions = field(default_factory=no_positions)
    labels: Labels = "keep"

    def blocks(self, columns: Sequence[str], most_rows: int | None = None) -> Iterator[Block]:
        """The part's rows in blocks of at most BLOCK_ROWS or `most_rows`, with at least the columns named.

        Raises:
            SchemaError: a table of the source lacks one of the columns.
            IntegrityError: after the last block, `duplicates` does not ascend or reaches past the rows.
        """
        position = self.first_row
        label_columns = () if self.labels == "keep" else EXPLICIT_COLUMNS["signed"]
        wanted = list(dict.fromkeys([*columns, *label_columns]))
        for rows in _even_blocks(self.source, wanted, most_rows or BLOCK_ROWS):
            unique = unique_rows(position, rows.num_rows, self.duplicates)
            block = Block(
                rows=rows if unique is None else rows.filter(pa.array(unique)), first_row=position, kept=unique
            )
            position += rows.num_rows
            yield block if self.labels == "keep" else _treated(block, self.labels)
        _check_positions(self.duplicates, self.first_row, position)


def parts_of(source: ScoreSource, duplicates: Positions, labels: Labels, num_parts: int) -> list[Part]:
    """The source in parts, each with the duplicates that lie in it.

    Raises:
        IntegrityError: `duplicates` does not ascend from 0.
    """
    if duplicates.size and not (duplicates[0] >= 0 and (np.diff(duplicates) > 0).all()):
        raise _bad_positions(duplicates, "the scored rows")
    pieces = source.split(num_parts)
    firsts = [first for first, _ in pieces]
    cuts = np.searchsorted(duplicates, [*firsts[1:], np.iinfo(np.int64).max])
    starts = [0, *cuts[:-1]]
    return [
        Part(source=piece, first_row=first, duplicates=duplicates[start:stop], labels=labels)
        for (first, piece), start, stop in zip(pieces, starts, cuts, strict=True)
    ]


def unique_rows(first_row: int, num_rows: int, left_out: Positions) -> BoolArray | None:
    """Mask of rows first_row to first_row + num_rows that are not at `left_out`; None where that is all of them."""
    start, stop = np.searchsorted(left_out, [first_row, first_row + num_rows])
    if start == stop:
        return None
    keep = np.ones(num_rows, dtype=np.bool_)
    keep[left_out[start:stop] - first_row] = False
    return keep


def check_columns(schema: pa.Schema, columns: Sequence[str]) -> None:
    """Raise a SchemaError that names what is missing."""
    require_columns(
        schema, columns, where="selection", remedy="Point `scored` at the output of a finished `alignpot score`."
    )


def _treated(block: Block, labels: Labels) -> Block:
    against = contradicted(block.rows)
    num_against = int(np.count_nonzero(against))
    if not num_against:
        return block
    if labels == "swap":
        rows = swap_sides(block.rows, against)
        return Block(rows=rows, first_row=block.first_row, kept=block.kept, num_contradicted=num_against)
    kept = np.ones(block.rows.num_rows, dtype=np.bool_) if block.kept is None else block.kept.copy()
    kept[np.flatnonzero(kept)[against]] = False
    rows = block.rows.filter(pa.array(~against))
    return Block(rows=rows, first_row=block.first_row, kept=kept, num_contradicted=num_against)


def _check_positions(positions: Positions, first: int, stop: int) -> None:
    if positions.size and not (positions[0] >= first and positions[-1] < stop and (np.diff(positions) > 0).all()):
        raise _bad_positions(positions, f"scored rows {first} to {stop - 1}")


def _bad_positions(positions: Positions, rows: str) -> IntegrityError:
    return IntegrityError(
        f"positions of duplicates must ascend within {rows}, got {positions.size} positions from {positions[0]} to "
        f"{positions[-1]}. Find them in the dataset that is selected from."
    )


def _even_blocks(source: ScoreSource, columns: list[str], most_rows: int) -> Iterator[pa.RecordBatch]:
    """Blocks near `most_rows` however small the source's tables are; large ones are cut without a copy."""
    held: list[pa.RecordBatch] = []
    num_held = 0
    for table in source.tables(columns):
        check_columns(table.schema, columns)
        for batch in table.select(columns).to_batches(max_chunksize=most_rows):
            if held and num_held + batch.num_rows > most_rows:
                yield _joined(held)
                held, num_held = [], 0
            held.append(batch)
            num_held += batch.num_rows
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    # concat_batches copies even a single one.
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
