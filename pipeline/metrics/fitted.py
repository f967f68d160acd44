"""The numbers that a metric takes from the whole set before it can score a row: a few floats, kept in the manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.metrics.normalise import Normaliser, normaliser_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What scores depend on besides the row.

    normalisers: by term. weight: the explicit/implicit ratio that is applied to normalised margins.
    scales: Bradley-Terry scales by term: scale times margin is in log-odds. ranges: lowest and highest value by term.
    """

    normalisers: Mapping[str, Normaliser] = field(default_factory=dict)
    weight: float | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; floats come back to the bit."""
        return {
            "normalisers": {name: normaliser.to_dict() for name, normaliser in self.normalisers.items()},
            "weight": self.weight,
            "scales": dict(self.scales),
            "ranges": {name: list(bounds) for name, bounds in self.ranges.items()},
        }


def fitted_of(value: Mapping[str, Any]) -> Fitted:
    """What `to_dict` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is damaged.
    """
    return Fitted(
        normalisers={name: normaliser_of(entry) for name, entry in value["normalisers"].items()},
        weight=None if value["weight"] is None else float(value["weight"]),
        scales={name: float(scale) for name, scale in value["scales"].items()},
        ranges={name: (float(low), float(high)) for name, (low, high) in value["ranges"].items()},
    )
