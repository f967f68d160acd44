"""Exact mean and spread of float64 values, however they are split, ordered and merged.

Moments hold integers: the count, the sum in units of 2**-1074 and the sum of squares in units of 2**-2148, the
spacing of the smallest float64 and its square. So every finite float64 is in range, additions are exact, and
merging is associative and commutative to the last bit. `mean` and `std` are rounded once, to the nearest float64.

The sums themselves are taken by `pipeline.metrics.kernels`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.kernels import ExactSums, add_values

_UNIT: Final = 1074  # the sum counts units of 2**-1074


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Moments:
    """Count, sum and sum of squares as integers; `+` merges two of them exactly.

    total: sum of the values, in units of 2**-1074.
    total_squares: sum of the squared values, in units of 2**-2148.
    """

    count: int = 0
    total: int = 0
    total_squares: int = 0

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            count=self.count + other.count,
            total=self.total + other.total,
            total_squares=self.total_squares + other.total_squares,
        )

    def __repr__(self) -> str:
        return f"Moments(count={self.count}, mean={self.mean()!r}, std={self.std()!r})"

    def mean(self) -> float:
        """The mean, rounded once; NaN where there are no values."""
        return self.total / (self.count << _UNIT) if self.count else math.nan

    def std(self) -> float:
        """The population standard deviation (ddof 0, as numpy's default), rounded once; NaN without values."""
        return _std(self)

    def to_dict(self) -> Mapping[str, int | float | None]:
        """Count, mean and standard deviation, JSON-ready; null without values."""
        if not self.count:
            return {"count": 0, "mean": None, "std": None}
        return {"count": self.count, "mean": self.mean(), "std": self.std()}


def moments_of(values: FloatArray) -> Moments:
    """The moments of finite float64 values of any shape.

    Raises:
        DataError: a value is NaN or infinite; count and take out such rows first.
    """
    flat = np.ascontiguousarray(values, dtype=np.float64).reshape(-1)
    sums = ExactSums.empty()
    if not add_values(flat, sums):
        num_bad = int(np.count_nonzero(~np.isfinite(flat)))
        raise DataError(f"{num_bad} of {flat.size} values are NaN or infinite; take such rows out before the moments.")
    return moments_from(sums, flat.size)


def moments_from(sums: ExactSums, count: int) -> Moments:
    """The moments of `count` values that were added to `sums`."""
    total, total_squares = sums.integers()
    return Moments(count=count, total=total, total_squares=total_squares)


@lru_cache(maxsize=16)
def _std(moments: Moments) -> float:
    """Cached, for the root of a few thousand bits is taken once and used for every block."""
    if not moments.count:
        return math.nan
    return _rounded_root(moments.count * moments.total_squares - moments.total**2, moments.count)


def _rounded_root(square: int, count: int) -> float:
    """sqrt(square) / count in units of 2**-1074, to the nearest float64."""
    if square == 0:
        return 0.0
    # 56 bits of root and a sticky bit below them round the same way as the exact root does.
    extra = max(0, (2 * 56 + 2 * count.bit_length() - square.bit_length()) // 2 + 1)
    scaled, remainder = divmod(square << (2 * extra), count * count)
    root = math.isqrt(scaled)
    inexact = remainder != 0 or root * root != scaled
    return ((root << 1) | inexact) / (1 << (_UNIT + extra + 1))
