"""Labels that the reward contradicts: pairs whose rejected response has the higher reward, and how to turn them round.

A pair is contradicted where its signed explicit margin, reward of chosen minus reward of rejected, is below zero.
Swapping exchanges everything that belongs to one side: text, reward, log-probs, token count. What belongs to the pair
stays: prompt, rewards of all candidates, outcome, and also `id` and `content_digest`, which name the row of the source
that the pair comes from, in the order that the source gave the two sides.
"""

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.errors import SchemaError
from pipeline.metrics.columns import BoolArray
from pipeline.metrics.margins import explicit_margin

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)

_CHOSEN_END: Final = "chosen"
_REJECTED_END: Final = "rejected"


def _sides(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The column of chosen and that of rejected, for every quantity that has both."""
    known = tuple(names)
    chosen = (name for name in known if name.endswith(_CHOSEN_END))
    pairs = ((name, name.removesuffix(_CHOSEN_END) + _REJECTED_END) for name in chosen)
    return tuple(pair for pair in pairs if pair[1] in known)


SIDES: Final = _sides(schema.with_leads(schema.scored_schema(), [""]).names)
"""Columns that are exchanged, chosen first, beside those of rewards that have names."""


def sides_of(columns: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs of columns that are exchanged, chosen first, of which a table has at least one."""
    names = {*columns}
    known = [pair for pair in SIDES if names & {*pair}]
    named, judged = schema.named_rewards(sorted(names)), schema.judged_rewards(sorted(names))
    return [*known, *map(schema.reward_columns, named), *(schema.lead_columns(name) for name in judged if name)]


def contradicted(block: pa.Table | pa.RecordBatch) -> BoolArray:
    """Which pairs the reward contradicts, bool [num_rows]; a margin that is null or NaN contradicts nothing.

    Raises:
        SchemaError: a reward is not there, or it is not numeric.
    """
    below: BoolArray = explicit_margin(block, "signed") < 0
    return below


def swap_sides(table: Rows, rows: BoolArray) -> Rows:
    """The table with chosen and rejected exchanged in `rows`, bool [num_rows]; without a copy where there is none.

    Every pair of columns in `sides_of` is exchanged. All other columns stay, `id` and `content_digest` among them.
    Swapping twice gives the table back.

    Raises:
        SchemaError: the table has a column of one side only, or the two sides have different types.
    """
    pairs = sides_of(table.schema.names)
    for pair in pairs:
        _check_pair(table.schema, pair)
    if not rows.any():
        return table
    mask = pa.array(rows)
    columns: dict[str, Any] = dict(zip(table.schema.names, table.columns, strict=True))
    for chosen, rejected in pairs:
        ours, theirs = columns[chosen], columns[rejected]
        columns[chosen], columns[rejected] = pc.if_else(mask, theirs, ours), pc.if_else(mask, ours, theirs)
    return type(table).from_arrays([*columns.values()], schema=table.schema)


def _check_pair(columns: pa.Schema, pair: tuple[str, str]) -> None:
    missing = [name for name in pair if name not in columns.names]
    if missing:
        raise SchemaError(
            f"sides cannot be swapped: {' and '.join({*pair} - {*missing})} is there without {missing[0]}. "
            "Read both columns, or neither."
        )
    kinds = [columns.field(name).type for name in pair]
    if kinds[0] != kinds[1]:
        raise SchemaError(
            f"sides cannot be swapped: {pair[0]} has type {kinds[0]}, {pair[1]} {kinds[1]}. Cast them to one type."
        )
