"""How margins of different units are made comparable: by mean and spread, by median and MAD, or by rank.

A normaliser is a handful of numbers taken from the whole set. It is applied element by element, and kept in the
manifest of a selection, so that rows that come later are measured by the same rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.metrics.columns import FloatArray

CONSISTENCY: Final = 1.482602218505602
"""Median absolute deviations of a normal distribution in one standard deviation, 1 / Phi^-1(3/4)."""

RANK_BITS: Final = 18  # sign, exponent and six bits of mantissa
_DROPPED_BITS: Final = 64 - RANK_BITS
_SIGN: Final = np.uint64(2**63)
_LARGEST: Final = np.finfo(np.float64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """(value - center) / spread: a z-score (mean, standard deviation with ddof 0) or its robust form."""

    center: float
    spread: float

    def apply(self, values: FloatArray) -> FloatArray:
        """Normalised values, float64."""
        return (values - self.center) / self.spread

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"center": self.center, "spread": self.spread}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """Share of the rows below a value, in [0, 1], read off a histogram and linear inside a bucket.

    A bucket holds the values that agree in sign, exponent and the first six bits of the mantissa, some 1.6 percent
    wide, so that the histogram has the same few thousand buckets for any number of rows.

    buckets: ascending indices of those that hold rows, int64 [n]. counts: rows in each, int64 [n].
    """

    buckets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    def apply(self, values: FloatArray) -> FloatArray:
        """Ranks of finite values, float64; order is kept, equal values get equal ranks. NaN stays NaN."""
        finite = np.isfinite(values)
        safe = np.where(finite, values, 0.0)
        bucket = rank_buckets(safe)
        below = np.concatenate([[0], np.cumsum(self.counts)])
        place = np.searchsorted(self.buckets, bucket)
        held = np.append(self.buckets, -1)[place] == bucket
        inside = np.where(held, np.append(self.counts, 0)[place], 0)
        low, high = bucket_edge(bucket), bucket_edge(bucket + 1)
        share = np.clip((safe / 2 - low / 2) / (high / 2 - low / 2), 0.0, 1.0)
        ranks: FloatArray = (below[place] + share * inside) / below[-1]
        return np.where(finite, ranks, np.nan)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"buckets": self.buckets.tolist(), "counts": self.counts.tolist()}


Normaliser: TypeAlias = Scale | Ranks


def normaliser_of(value: Mapping[str, Any]) -> Normaliser:
    """What `to_dict` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is damaged.
    """
    if "buckets" in value:
        return Ranks(buckets=np.array(value["buckets"], np.int64), counts=np.array(value["counts"], np.int64))
    return Scale(center=float(value["center"]), spread=float(value["spread"]))


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


def rank_buckets(values: FloatArray) -> npt.NDArray[np.int64]:
    """The bucket of each finite value; buckets keep the order of the values, and -0.0 is 0.0."""
    bits = np.ascontiguousarray(values + 0.0).view(np.uint64)
    images = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (images >> np.uint64(_DROPPED_BITS)).astype(np.int64)


def bucket_edge(buckets: npt.NDArray[np.int64]) -> FloatArray:
    """The lower edge of each bucket, float64; what lies beyond the finite numbers is the largest of them."""
    images = np.minimum(buckets, (1 << RANK_BITS) - 1).astype(np.uint64) << np.uint64(_DROPPED_BITS)
    bits = np.where(images & _SIGN, images ^ _SIGN, ~images)
    edges = bits.view(np.float64)
    return np.clip(np.where(np.isnan(edges), np.where(buckets < 1 << (RANK_BITS - 1), -np.inf, np.inf), edges),
                   -_LARGEST, _LARGEST)  # fmt: skip
