"""Pairs that stand for the corners of the plane, with their texts: shown only where they are asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pipeline import schema
from pipeline.selection.plane import QUADRANTS
from pipeline.selection.selection import Found
from pipeline.selection.source import Source, take_all
from pipeline.selection.view import View
from pipeline.shown import shown

_LONGEST: Final = 2_000
_TEXTS: Final = (schema.ID, schema.PROMPT, schema.CHOSEN, schema.REJECTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """Some pairs of one quadrant: those of the highest score."""

    name: str
    pairs: tuple[Mapping[str, Any], ...]


def examples(found: Found, source: Source, num: int) -> list[Corner]:
    """The `num` best ranked pairs of each quadrant that has some; of equal scores, those of the smallest hashes."""
    view = View.of(found)
    with np.errstate(invalid="ignore"):
        signs = np.sign(view.reward), np.sign(view.implicit)
    corners = []
    for name, (reward, implicit) in zip(QUADRANTS, ((1, 1), (1, -1), (-1, 1), (-1, -1)), strict=False):
        rows = np.flatnonzero(view.ranked & (signs[0] == reward) & (signs[1] == implicit))
        best = rows[np.lexsort((found.columns.hashes[rows], -view.scores[rows]))][:num]
        if best.size:
            corners.append(Corner(name=name, pairs=_pairs(view, source, best.tolist())))
    return corners


def _pairs(view: View, source: Source, rows: Sequence[int]) -> tuple[Mapping[str, Any], ...]:
    places = np.sort(np.array(rows, dtype=np.int64))
    texts = dict(zip(places.tolist(), take_all(source, places, _TEXTS).to_pylist(), strict=True))
    swapped = view.found.selection.query.rule.labels == "swap"
    pairs = []
    for row in rows:
        text = texts[row]
        sides = [schema.CHOSEN, schema.REJECTED]
        if swapped and view.found.columns.against[row]:
            sides.reverse()
        pairs.append({
            "id": text[schema.ID],
            "selected": bool(view.selected[row]),
            schema.MARGIN_EXPLICIT: float(view.reward[row]),
            schema.MARGIN_IMPLICIT: float(view.implicit[row]),
            schema.POTENTIAL: float(view.scores[row]),
            "turns": [
                *((f"prompt, {turn['role']}", _text(turn)) for turn in text[schema.PROMPT] or ()),
                *(("chosen", _text(turn)) for turn in text[sides[0]] or ()),
                *(("rejected", _text(turn)) for turn in text[sides[1]] or ()),
            ],
        })  # fmt: skip
    return tuple(pairs)


def _text(turn: Mapping[str, Any]) -> str:
    return "\n".join(shown(line, _LONGEST) for line in str(turn["content"] or "")[:_LONGEST].split("\n"))
