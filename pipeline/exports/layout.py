"""What a format of a trainer is: its own columns, how a pair becomes rows, and which pairs it cannot hold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from pipeline import schema

Row = Mapping[str, Any]
BLOCK_PAIRS: Final = 1000  # pairs that `convert` sees at once, counted over the pairs that fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What holds for every pair of the subset that fits.

    has_tools: that some pair comes with tools. The others: that every pair has both values.
    """

    has_tools: bool
    has_reference: bool
    has_rewards: bool
    has_margin: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFormat:
    """One layout of one trainer."""

    container: str
    """hf: a `load_from_disk` folder; jsonl: JSON Lines."""
    reads: str
    """Who reads it, in a few words."""
    usage: str
    """How to point the trainer at it; {path} stands for the folder."""
    columns: Callable[[Facts], Sequence[pa.Field]]
    """The columns that the trainer reads."""
    convert: Callable[[Sequence[Row], Facts], list[dict[str, Any]]]
    """Values of `columns` for a block of pairs, each row with `PAIR`: the position of its pair in the block."""
    unfit: Callable[[Row], str | None]
    """Why the format cannot hold a pair; None if it can."""
    misread: frozenset[str] = frozenset()
    """Names of columns that the trainer would take for something else; they are left out."""
    rows_per_pair: int = 1
    descriptions: Callable[[Facts], Mapping[str, bytes]] = lambda _: {}
    """Small files beside the data, by name."""


PAIR: Final = "__pair__"


def fits_all(row: Row) -> None:
    """For formats that hold every pair."""
    del row


def tools_field(facts: Facts) -> list[pa.Field]:
    """The tools column, where a pair has tools."""
    return [pa.field(schema.TOOLS, pa.string())] if facts.has_tools else []


def tools_of(row: Row, facts: Facts) -> dict[str, Any]:
    """The value for `tools_field`."""
    return {schema.TOOLS: row.get(schema.TOOLS)} if facts.has_tools else {}
