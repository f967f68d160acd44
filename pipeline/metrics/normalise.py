"""How margins of different units are made comparable: by mean and spread, by median and MAD, or by rank.

A scale is two numbers taken from the whole set. It is applied element by element, and kept in the manifest of a
selection, so that later rows are measured by the same rule. Ranks need all values and are not kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.length import LengthFit, length_fit_of
from pipeline.metrics.weighting import Weighting

CONSISTENCY: Final = 1.482602218505602
"""Median absolute deviations of a normal distribution in one standard deviation, 1 / Phi^-1(3/4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """(value - center) / spread: a z-score (mean, standard deviation with ddof 0) or its robust form."""

    center: float
    spread: float

    def apply(self, values: FloatArray) -> FloatArray:
        """Normalised values, float64."""
        return (values - self.center) / self.spread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """Share of the rows below a value plus half of those equal to it, in (0, 1).

    ordered: all values of the set, ascending, float64 [num_rows].
    """

    ordered: FloatArray

    def apply(self, values: FloatArray) -> FloatArray:
        """Ranks, float64; order is kept, equal values get equal ranks. NaN stays NaN."""
        below, up_to = (np.searchsorted(self.ordered, values, side) for side in ("left", "right"))
        ranks: FloatArray = (below + up_to) / (2.0 * self.ordered.size)
        return np.where(np.isnan(values), np.nan, ranks)


Normaliser: TypeAlias = Scale | Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What the scores of a metric depend on besides the row; taken from the whole set.

    normalisers: by term. weight: the explicit/implicit ratio that is applied to normalised margins.
    scales: Bradley-Terry scales by term: scale times margin is in log-odds. ranges: lowest and highest value by term.
    length: what the length gap explains of the explicit margin, where metric.length takes it out.
    members: of the margins of several rewards, by name, before they are combined. bands: lowest and highest value by
    term of select.band. weighting: of select.weights.
    """

    normalisers: Mapping[str, Normaliser] = field(default_factory=dict)
    weight: float | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    length: LengthFit | None = None
    members: Mapping[str, Normaliser] = field(default_factory=dict)
    bands: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weighting: Weighting | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; floats come back to the bit. Of ranks, only that they are ranks."""
        return {
            "normalisers": _to_dict(self.normalisers),
            "weight": self.weight,
            "scales": dict(self.scales),
            "ranges": _lists(self.ranges),
            **({} if self.length is None else {"length": self.length.to_dict()}),
            **({"members": _to_dict(self.members)} if self.members else {}),
            **({"bands": _lists(self.bands)} if self.bands else {}),
            **({} if self.weighting is None else {"weighting": self.weighting.to_dict()}),
        }

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> "Fitted":
        """What `to_dict` wrote of a metric without ranks.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        return Fitted(
            normalisers=_from_dict(value["normalisers"]),
            weight=None if value["weight"] is None else float(value["weight"]),
            scales={name: float(scale) for name, scale in value["scales"].items()},
            ranges=_bounds(value["ranges"]),
            length=length_fit_of(value["length"]) if "length" in value else None,
            members=_from_dict(value.get("members", {})),
            bands=_bounds(value.get("bands", {})),
            weighting=Weighting.from_dict(value["weighting"]) if "weighting" in value else None,
        )


def _lists(bounds: Mapping[str, tuple[float, float]]) -> dict[str, list[float]]:
    return {name: [*pair] for name, pair in bounds.items()}


def _bounds(value: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {name: (float(low), float(high)) for name, (low, high) in value.items()}


def _to_dict(normalisers: Mapping[str, Normaliser]) -> dict[str, Any]:
    return {
        name: {"center": scale.center, "spread": scale.spread} if isinstance(scale, Scale) else "ranks"
        for name, scale in normalisers.items()
    }


def _from_dict(value: Mapping[str, Any]) -> dict[str, Normaliser]:
    return {name: Scale(center=float(entry["center"]), spread=float(entry["spread"])) for name, entry in value.items()}


def checked_scale(center: float, spread: float, *, name: str, num_rows: int) -> Scale:
    """A scale whose spread can be divided by.

    Raises:
        DataError: the spread is zero or not finite.
    """
    if not 0 < spread < np.inf:
        raise DataError(
            f"{name} has no spread to divide by (center {center!r}, spread {spread!r}, {num_rows} ranked rows). Check "
            "the column it comes from; to rank without it choose another metric.name or metric.normalise: none."
        )
    return Scale(center=center, spread=spread)
