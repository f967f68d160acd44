"""What selection reads: the kept rows of a scored dataset, in a fixed order, whole, in parts or by position."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import require_columns

Positions: TypeAlias = npt.NDArray[np.int64]
"""Places of rows among all kept rows of a source, ascending unless something else is said."""


class Source(Protocol):
    """Scored rows that can be read again and again, always the same rows in the same order."""

    @property
    def schema(self) -> pa.Schema:
        """All columns."""
        ...

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """All rows with the named columns, a few thousand at a time."""
        ...

    def take(self, positions: Positions, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows at these ascending positions with the named columns."""
        ...

    def has_values(self, column: str) -> bool:
        """Whether any row has a value in this column."""
        ...

    def split(self, num_parts: int) -> Sequence[tuple[int, "Source"]]:
        """About `num_parts` consecutive pieces, each with the position of its first row; they can be pickled."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSource:
    """A table in memory as a source."""

    table: pa.Table

    @property
    def schema(self) -> pa.Schema:
        """All columns."""
        return self.table.schema

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The table's columns of these names, as one table.

        Raises:
            SchemaError: a column is missing.
        """
        check_columns(self.table.schema, columns)
        yield self.table.select(list(columns))

    def take(self, positions: Positions, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows at these positions, as one table. Raises as `tables`."""
        check_columns(self.table.schema, columns)
        yield self.table.select(list(columns)).take(pa.array(positions))

    def has_values(self, column: str) -> bool:
        """Whether any row has a value in this column."""
        return bool(self.table.column(column).null_count < self.table.num_rows)

    def split(self, num_parts: int) -> Sequence[tuple[int, Source]]:
        """Slices of the table, without a copy."""
        size = max(2**16, -(-self.table.num_rows // num_parts))
        starts = range(0, max(1, self.table.num_rows), size)
        return [(start, TableSource(table=self.table.slice(start, size))) for start in starts]


def no_positions() -> Positions:
    """An empty array of positions."""
    return np.zeros(0, dtype=np.int64)


def take_all(source: Source, positions: Positions, columns: Sequence[str]) -> pa.Table:
    """The rows at ascending positions as one table; for few rows or narrow columns."""
    none = source.schema.empty_table().select(list(columns))
    return pa.concat_tables([none, *source.take(positions, columns)]).combine_chunks()


def check_columns(schema: pa.Schema, columns: Sequence[str]) -> None:
    """Raise a SchemaError that names what is missing."""
    require_columns(
        schema, columns, where="selection", remedy="Point `scored` at the output of a finished `alignpot score`."
    )
