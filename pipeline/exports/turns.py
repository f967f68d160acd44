"""Checks of dialogues that several formats share. Each returns a reason to leave the pair out, or None."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline import schema
from pipeline.exports.layout import Row


def has_tools(row: Row) -> str | None:
    """For trainers that cannot show the tools of a prompt to the template."""
    return "tools" if row.get(schema.TOOLS) is not None else None


def many_turns(row: Row) -> str | None:
    """For formats that hold one answer turn, the assistant's."""
    for side in (schema.CHOSEN, schema.REJECTED):
        turns = row[side]
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            return "an answer of several turns"
    return None


def unknown_role(turns: Iterable[Mapping[str, Any]], known: frozenset[str]) -> str | None:
    """For trainers that know some roles only."""
    found = sorted({str(turn["role"]) for turn in turns} - known)
    return f"role {found[0]}" if found else None
