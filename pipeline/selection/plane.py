"""Where the rows lie in the plane of both margins, and along each of them: counts in bins, exact over all rows."""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline import schema
from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.selection.fit import blocks_of
from pipeline.selection.view import View

QUADRANTS: Final = ("agree", "reward_only", "policy_only", "both_against", "undecided")
"""By the signs of reward margin and implicit margin: ++, +-, -+, --, and rows where one of them is 0."""
ACROSS: Final = 26
DOWN: Final = 10
"""Hexagons of one lattice, from edge to edge; a second one lies between."""
_OUTSIDE: Final = (2 * ACROSS + 1) * (2 * DOWN + 1)
"""Code of the rows beyond the picture, after those of the hexagons."""
_BARS: Final = 40
_TAIL: Final = 0.002


class Hexagons:
    """Counts of the rows of two groups, all and selected, in the hexagons of a picture with these two ranges."""

    def __init__(self, ranges: tuple[list[float], list[float]]) -> None:
        self._ranges = ranges
        self._counts = np.zeros((2, _OUTSIDE + 1), dtype=np.int64)

    def add(self, group: int, x: FloatArray, y: FloatArray) -> None:
        """Count rows of a group: of the nearest centres of both lattices, the nearer one; finite values."""
        (left, right), (bottom, top) = self._ranges
        inside = (x >= left) & (x <= right) & (y >= bottom) & (y <= top)
        across = (x[inside] - left) / (right - left) * ACROSS
        up = (y[inside] - bottom) / (top - bottom) * DOWN
        first = np.rint(across), np.rint(up)
        second = np.minimum(np.floor(across), ACROSS - 1) + 0.5, np.minimum(np.floor(up), DOWN - 1) + 0.5
        near = [(across - column) ** 2 + 3 * (up - row) ** 2 for column, row in (first, second)]
        column, row = (np.where(near[0] <= near[1], a, b) for a, b in zip(first, second, strict=True))
        codes = np.full(x.size, _OUTSIDE, dtype=np.int64)
        codes[inside] = (2 * column * (2 * DOWN + 1) + 2 * row).astype(np.int64)
        self._counts[group] += np.bincount(codes, minlength=_OUTSIDE + 1)

    def to_dict(self, groups: Iterable[str]) -> dict[str, Any]:
        """JSON-ready: rows outside the picture by group, and the hexagons that hold a row."""
        counts = dict(zip(groups, self._counts, strict=True))
        filled = np.flatnonzero(self._counts[0, :-1])
        return {
            "outside": {name: int(of_group[-1]) for name, of_group in counts.items()},
            "cells": {
                "column": (filled // (2 * DOWN + 1)).tolist(),
                "row": (filled % (2 * DOWN + 1)).tolist(),
                **{name: of_group[filled].tolist() for name, of_group in counts.items()},
            },
        }


def plane(view: View) -> dict[str, Any] | None:
    """Counts by quadrant, and of hexagons that hold a row; None if no row has both margins.

    column, row: the centre of a hexagon in halves of the lattice's steps, from the lower left corner of the picture.
    outside: rows beyond the picture, which leaves out the ends of either margin.
    """
    inside = view.sample[np.isfinite(view.reward[view.sample]) & np.isfinite(view.implicit[view.sample])]
    if not inside.size:
        return None
    reward_range, implicit_range = (picture_range(margin[inside], zero=True) for margin in (view.reward, view.implicit))
    quadrants = np.zeros((2, len(QUADRANTS)), dtype=np.int64)
    hexagons = Hexagons((reward_range, implicit_range))
    for block in blocks_of(view.scores.size):
        for group, rows in enumerate(view.groups.values()):
            reward, implicit = view.reward[block][rows[block]], view.implicit[block][rows[block]]
            known = np.isfinite(reward) & np.isfinite(implicit)
            reward, implicit = reward[known], implicit[known]
            quadrants[group] += np.bincount(_quadrant(reward, implicit), minlength=len(QUADRANTS))
            hexagons.add(group, reward, implicit)
    return {
        "quadrants": {
            name: dict(zip(QUADRANTS, counts, strict=True))
            for name, counts in zip(view.groups, quadrants.tolist(), strict=True)
        },
        "reward": reward_range,
        "implicit": implicit_range,
        **hexagons.to_dict(view.groups),
    }


def histograms(view: View) -> dict[str, dict[str, Any]]:
    """Bars of both margins and of the score, as far as they hold values; the first and last bar hold all beyond."""
    values = {
        schema.MARGIN_EXPLICIT: view.explicit,
        schema.MARGIN_IMPLICIT: view.implicit,
        schema.POTENTIAL: view.scores,
    }
    found = {}
    for name, of_rows in values.items():
        sample = of_rows[view.sample]
        if not np.isfinite(sample).any():
            continue
        low, high = picture_range(sample[np.isfinite(sample)], zero=False)
        found[name] = {
            "edges": [float(f"{edge:.6g}") for edge in np.linspace(low, high, _BARS + 1)],
            **{group: _bars(of_rows, rows, low, high) for group, rows in view.groups.items()},
        }
    return found


def _bars(values: FloatArray, rows: BoolArray, low: float, high: float) -> list[int]:
    counts = np.zeros(_BARS, dtype=np.int64)
    for block in blocks_of(values.size):
        of_block = values[block][rows[block]]
        place = (np.clip(of_block[np.isfinite(of_block)], low, high) - low) / (high - low) * _BARS
        counts += np.bincount(np.minimum(place.astype(np.int64), _BARS - 1), minlength=_BARS)
    bars: list[int] = counts.tolist()
    return bars


def picture_range(values: FloatArray, *, zero: bool) -> list[float]:
    """From end to end, without the last 0.2% on either side of a set that is large enough to have them."""
    low, high = np.quantile(values, [_TAIL, 1 - _TAIL], method="nearest").tolist()
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = 0.02 * (high - low) or max(1.0, abs(high))
    bounds = [float(f"{low - room:.6g}"), float(f"{high + room:.6g}")]
    return bounds if bounds[0] < bounds[1] and np.isfinite(bounds).all() else [-1.0, 1.0]


def _quadrant(reward: FloatArray, implicit: FloatArray) -> npt.NDArray[np.int64]:
    place = 2 * (reward < 0) + (implicit < 0)
    place[(reward == 0) | (implicit == 0)] = len(QUADRANTS) - 1
    return place.astype(np.int64)
