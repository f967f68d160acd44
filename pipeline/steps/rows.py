"""Marking rows as dropped and adding columns: what every stage does to a shard's table."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.drops import Drop, Reason, StageName
from pipeline.schema import DROP_REASON, DROP_STAGE, KEPT, STATUS

# Columns that stages hand to each other carry this prefix and never reach storage.
TRANSIENT_PREFIX: Final = "__alignpot_"


def kept_rows(table: pa.Table) -> npt.NDArray[np.int64]:
    """Positions of the rows that are not dropped, ascending."""
    mask = pc.equal(table.column(STATUS), KEPT).to_numpy(zero_copy_only=False)
    return np.flatnonzero(mask).astype(np.int64)


def drop_rows(table: pa.Table, reasons: Mapping[int, Reason], *, stage: StageName) -> pa.Table:
    """Mark the rows at the given positions as dropped at `stage`, each with its reason."""
    if not reasons:
        return table
    outcomes = {row: Drop(reason, stage).columns for row, reason in reasons.items()}
    for name in (STATUS, DROP_STAGE, DROP_REASON):
        values = table.column(name).to_pylist()
        for row, outcome in outcomes.items():
            values[row] = outcome[name]
        table = set_column(table, name, pa.array(values, pa.string()))
    return table


def set_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Replace or append a column, keeping the position of one that is there."""
    position = table.schema.get_field_index(name)
    if position < 0:
        return table.append_column(name, values)
    return table.set_column(position, pa.field(name, values.type), values)


def spread(values: Sequence[object], rows: Sequence[int], *, num_rows: int, of_type: pa.DataType) -> pa.Array:
    """Values of some rows as a column of `num_rows` rows, null elsewhere."""
    column: list[object] = [None] * num_rows
    for row, value in zip(rows, values, strict=True):
        column[row] = value
    return pa.array(column, of_type)


def without_transient(table: pa.Table) -> pa.Table:
    """The table without the columns that stages hand to each other."""
    return table.select([name for name in table.column_names if not name.startswith(TRANSIENT_PREFIX)])
