"""Marking rows as dropped and adding columns: what every stage does to a shard's table."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.drops import Drop, Reason, StageName
from pipeline.models.packing import Int32Array
from pipeline.models.scores import Scores
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


def token_ids(table: pa.Table, rows: npt.NDArray[np.int64], name: str) -> list[Int32Array]:
    """Token ids of some rows, as views of one array."""
    column = table.column(name).take(pa.array(rows)).combine_chunks()
    values = column.values.to_numpy()
    return [values[begin:end] for begin, end in pairwise(column.offsets.to_pylist())]


def add_scores(
    table: pa.Table, scores: Scores, names: Sequence[tuple[str, str]], stage: StageName, non_finite: Reason
) -> pa.Table:
    """Add the numbers of both answers for each kept row. Rows that lack a finite one are dropped.

    scores: the numbers, those of a row together. names: of the two columns, for each head of the model.
    non_finite: the reason for a number that is NaN or infinite.
    """
    rows = kept_rows(table)
    # Of a row: each head of the first answer, then each of the second one.
    values = scores.values.reshape(len(rows), 2 * len(names))
    reasons = dict.fromkeys(np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist(), non_finite)
    reasons |= {index // 2: reason for index, reason in scores.left_out.items()}
    usable = [i for i in range(len(rows)) if i not in reasons]
    for name, side in zip([pair[i] for i in (0, 1) for pair in names], values.T, strict=True):
        column = spread(side[usable].tolist(), rows[usable].tolist(), num_rows=table.num_rows, of_type=pa.float64())
        table = set_column(table, name, column)
    return drop_rows(table, {int(rows[index]): reason for index, reason in reasons.items()}, stage=stage)


def without_transient(table: pa.Table) -> pa.Table:
    """The table without the columns that stages hand to each other."""
    return table.select([name for name in table.column_names if not name.startswith(TRANSIENT_PREFIX)])
