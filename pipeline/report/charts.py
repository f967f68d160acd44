"""Where the shapes of a picture stand, in the units of its viewBox; the templates write the SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.selection.plane import ACROSS, DOWN

LEFT: Final = 46
RIGHT: Final = 16
TOP: Final = 22
BOTTOM: Final = 40
_SHADES: Final = 5
_SMALLEST: Final = 0.22
"""Size of the smallest hexagon, beside that with the most rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """A picture of width x height with room for ticks, and the ranges that it shows."""

    width: int
    height: int
    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        """Where a value stands from left to right."""
        return round(LEFT + self._share(value, self.across) * (self.width - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Where a value stands from top to bottom."""
        return round(self.height - BOTTOM - self._share(value, self.up) * (self.height - TOP - BOTTOM), 1)

    @staticmethod
    def _share(value: float, bounds: tuple[float, float]) -> float:
        return (value - bounds[0]) / (bounds[1] - bounds[0])

    @property
    def ticks(self) -> dict[str, list[tuple[float, str]]]:
        """Places and texts of the ticks, by axis."""
        return {
            "x": [(self.x(value), text) for value, text in _ticks(*self.across)],
            "y": [(self.y(value), text) for value, text in _ticks(*self.up)],
        }

    @property
    def frame(self) -> dict[str, int]:
        """The inside of the picture."""
        return {"left": LEFT, "right": self.width - RIGHT, "top": TOP, "bottom": self.height - BOTTOM}


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Some five round values between the ends."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    values = [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [(value, _short(value)) for value in values]


def _short(value: float) -> str:
    """Text of a tick: 200k instead of 200000."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit <= abs(value) < 1e12 and abs(value) >= 1e4:
            return f"{value / unit:.6g}{name}"
    return f"{value:.4g}"


def hexagons(picture: Mapping[str, Any], across: str, up: str) -> dict[str, Any]:
    """A hexagon a cell, large where many rows are, in five shades by the share selected.

    across, up: the names of the ranges in the picture.
    """
    axes = Axes(width=480, height=360, across=tuple(picture[across]), up=tuple(picture[up]))
    cells = picture["cells"]
    most = max(cells["all"], default=1)
    step_x = (axes.width - LEFT - RIGHT) / ACROSS
    step_y = (axes.height - TOP - BOTTOM) / DOWN
    shapes = []
    for column, row, count, selected in zip(*(cells[k] for k in ("column", "row", "all", "selected")), strict=True):
        x, y = LEFT + column / 2 * step_x, axes.height - BOTTOM - row / 2 * step_y
        size = _SMALLEST + (1 - _SMALLEST) * math.sqrt(count / most)
        half, rise = size * step_x / 2, size * step_y / 3
        corners = [(0, -rise), (half, -rise / 2), (half, rise / 2), (0, rise), (-half, rise / 2), (-half, -rise / 2)]
        shapes.append({
            "points": " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners),
            "shade": min(_SHADES - 1, math.ceil(selected / count * (_SHADES - 1) - 0.01)) if selected else 0,
            "count": count,
            "selected": selected,
        })  # fmt: skip
    return {"axes": axes, "shapes": shapes, "zero": (axes.x(0), axes.y(0))}


def lines(axes: Axes, points: Sequence[Sequence[tuple[float, float]]]) -> list[str]:
    """Lines through points in units of the margins."""
    return [" ".join(f"{axes.x(x)},{axes.y(y)}" for x, y in line) for line in points]


def bars(edges: Sequence[float], counts: Sequence[int], selected: Sequence[int]) -> dict[str, Any]:
    """A histogram: all rows, and in front of them the selected ones. Bars are equally wide, whatever their edges."""
    axes = Axes(width=360, height=200, across=(0.0, float(len(counts))), up=(0.0, float(max(1, *counts))))
    shapes = [
        {
            "x": axes.x(place),
            "width": round(max(0.5, axes.x(place + 1) - axes.x(place) - 0.7), 1),
            "all": (axes.y(count), round(axes.y(0) - axes.y(count), 1), count),
            "selected": (axes.y(kept), round(axes.y(0) - axes.y(kept), 1), kept),
            "from": edges[place],
            "to": edges[place + 1],
        }
        for place, (count, kept) in enumerate(zip(counts, selected, strict=True))
    ]
    return {"axes": axes, "shapes": shapes}


def even_ticks(axes: Axes, edges: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks of a histogram whose bars share a range evenly."""
    low, high = edges[0], edges[-1]
    return [(axes.x((value - low) / (high - low) * axes.across[1]), text) for value, text in _ticks(low, high)]


def edge_ticks(axes: Axes, edges: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks at some five of the edges of a histogram."""
    step = max(1, (len(edges) - 1) // 5)
    return [(axes.x(place), _short(edges[place])) for place in range(0, len(edges), step)]


def weights(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Overlap and share of contradicted labels by weight, as lines; where each weight stands, and which is nearest.

    The nearest weight is that of the largest overlap with the subset.
    """
    axes = Axes(width=480, height=240, across=(rows[0]["weight"], rows[-1]["weight"]), up=(0.0, 1.0))
    names = ("overlap", "contradicted_by_reward")
    return {
        "axes": axes,
        "lines": lines(axes, [[(row["weight"], row[name] or 0.0) for row in rows] for name in names]),
        "x": [axes.x(row["weight"]) for row in rows],
        "nearest": max(range(len(rows)), key=lambda place: rows[place]["overlap"] or 0.0),
    }


def threshold_lines(selection: Mapping[str, Any], plane: Mapping[str, Any]) -> list[list[tuple[float, float]]]:
    """Where the score equals the threshold, as lines in units of the margins; none where that is no line.

    A metric that reads ranks, candidates, lengths or the whole set in another way has none, nor has a selection by
    groups.
    """
    threshold = selection.get("threshold")
    if threshold is None:
        threshold = selection["select"]["min_score"]
    metric = selection["metric"]
    beyond_both = metric["explicit"] == "candidates" or "length" in selection["fitted"]
    if threshold is None or selection["groups"] or beyond_both:
        return []
    (left, right), (bottom, top) = plane["reward"], plane["implicit"]
    name = metric["name"]
    if name == "potential":
        found = _potential_line(selection, threshold, bottom, top)
        return found if metric["explicit"] == "signed" else _mirrored(found)
    if name == "explicit":
        upright = [[(threshold, bottom), (threshold, top)]]
        return upright if metric["explicit"] == "signed" else _mirrored(upright)
    if name == "bees-add":
        return [[(threshold - bottom, bottom), (threshold - top, top)]]
    if name in ("implicit", "difficulty"):
        level = threshold if name == "implicit" and metric["order"] == "largest" else -threshold
        both = name == "implicit" and metric["implicit"] == "absolute"
        return [[(left, value), (right, value)] for value in ((level, -level) if both else (level,))]
    return []


def _potential_line(
    selection: Mapping[str, Any], threshold: float, bottom: float, top: float
) -> list[list[tuple[float, float]]]:
    metric, fitted = selection["metric"], selection["fitted"]
    weight = fitted["weight"] if metric["weight"] == "auto" else metric["weight"]
    implicit = "margin_implicit_abs" if metric["implicit"] == "absolute" else "margin_implicit"
    scales = [fitted["normalisers"].get(name, {"center": 0.0, "spread": 1.0}) for name in ("margin_explicit", implicit)]
    if "ranks" in scales:
        return []
    explicit, scale = scales

    def at(value: float) -> tuple[float, float]:
        of_policy = abs(value) if metric["implicit"] == "absolute" else value
        potential = threshold + weight * (of_policy - scale["center"]) / scale["spread"]
        return explicit["center"] + explicit["spread"] * potential, value

    return [[at(value) for value in (bottom, 0.0, top)]]


def _mirrored(found: list[list[tuple[float, float]]]) -> list[list[tuple[float, float]]]:
    """Of a line for the magnitude of the reward margin, both sides; what lies below zero is no magnitude."""
    kept = [[(x, y) for x, y in line if x >= 0] for line in found]
    return [line for each in kept for line in (each, [(-x, y) for x, y in each])]
