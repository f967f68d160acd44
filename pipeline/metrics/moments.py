"""Exact mean and spread of float64 values, however they are split, ordered and merged.

Moments hold integers: the count, the sum in units of 2**-1074 and the sum of squares in units of 2**-2148, the
spacing of the smallest float64 and its square. So every finite float64 is in range, additions are exact, and
merging is associative and commutative to the last bit. `mean` and `std` are rounded once, to the nearest float64.

How the sums stay exact at the speed of numpy: a chunk of 2**13 values is cut into slices of 20 bits on a common
grid (adding and subtracting 1.5 * 2**(52 + g) rounds to a multiple of 2**g). A product of two slices has 40 bits and
a sum of 2**13 of them 53, so the plain float64 dot products of slices are exact in any order of summation, with or
without fused multiply-add. (The error-free slicing of Ozaki et al., Numerical Algorithms 59, 2012.)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics.columns import FloatArray

_UNIT: Final = 1074  # the sum counts units of 2**-1074
_CHUNK: Final = 2**13
_SLICE_BITS: Final = 20
_MAX_SLICES: Final = 8
# Chunks whose largest magnitude is outside these powers of two are scaled first, so that no product of two slices
# can overflow or fall below the smallest float64.
_HIGH: Final = 450
_LOW: Final = -300
_SCALE: Final = 600


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

    def zscore(self, values: FloatArray, *, name: str) -> FloatArray:
        """(values - mean) / std, float64; `name` is for the error.

        Raises:
            DataError: there is no spread to divide by.
        """
        mean, std = self.mean(), self.std()
        if not std > 0:
            raise DataError(
                f"{name} is {mean!r} in all {self.count} ranked rows, so it has no z-score. Check the column it comes "
                "from; to rank without it choose another metric.name, or metric.normalise: none."
            )
        return (values - mean) / std

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
    total = total_squares = 0
    for start in range(0, flat.size, _CHUNK):
        chunk_total, chunk_squares = _exact_sums(flat[start : start + _CHUNK])
        total += chunk_total
        total_squares += chunk_squares
    return Moments(count=flat.size, total=total, total_squares=total_squares)


def _exact_sums(values: FloatArray, scale: int = 0) -> tuple[int, int]:
    """Exact sum and sum of squares of at most _CHUNK values, each standing for value * 2**scale."""
    largest = max(float(values.max()), -float(values.min()))
    if largest == 0:
        return 0, 0
    if not math.isfinite(largest):
        num_bad = int(np.count_nonzero(~np.isfinite(values)))
        raise DataError(
            f"{num_bad} of {values.size} values are NaN or infinite; take such rows out before the moments."
        )
    exponent = math.frexp(largest)[1]
    if exponent > _HIGH:
        big = np.abs(values) >= 1.0
        above = _exact_sums(values[big] * 2.0**-_SCALE, scale + _SCALE)
        return _add(above, _exact_sums(np.where(big, 0.0, values), scale))
    if exponent < _LOW:
        return _exact_sums(values * 2.0**_SCALE, scale - _SCALE)
    grid = exponent - _SLICE_BITS
    slices, rest = _slices(values, grid)
    if rest is None:
        return _sums_of_slices(slices, grid, scale)
    # Values of very different sizes share the chunk: the small ones get a finer grid of their own.
    small = np.flatnonzero(rest)
    for part in slices:
        part[small] = 0.0
    return _add(_sums_of_slices(slices, grid, scale), _exact_sums(values[small], scale))


def _slices(values: FloatArray, grid: int) -> tuple[list[FloatArray], FloatArray | None]:
    """Cut values into multiples of 2**grid, 2**(grid - 21), ..., and what is left, if anything, after _MAX_SLICES."""
    slices: list[FloatArray] = []
    rest = values
    while len(slices) < _MAX_SLICES:
        anchor = math.ldexp(1.5, 52 + grid)
        part = rest + anchor
        part -= anchor
        slices.append(part)
        rest = rest - part
        # Doubles fill three slices or more, so the test is not worth its time before; a slice of zeros changes nothing.
        if len(slices) > 2 and not rest.any():
            return slices, None
        grid -= _SLICE_BITS + 1
    return slices, rest


def _sums_of_slices(slices: list[FloatArray], grid: int, scale: int) -> tuple[int, int]:
    """Sum and sum of squares of the rows that the slices add up to, in units of Moments."""
    step = _SLICE_BITS + 1
    finest = grid - step * (len(slices) - 1)
    total = squares = 0
    for i, part in enumerate(slices):
        lift_i = step * (len(slices) - 1 - i)
        total += int(math.ldexp(float(part.sum()), -(finest + lift_i))) << lift_i
        for j in range(i, len(slices)):
            lift = lift_i + step * (len(slices) - 1 - j)
            product = int(math.ldexp(float(part @ slices[j]), -(2 * finest + lift)))
            squares += product << (lift + (i != j))
    return _shifted(total, finest + scale + _UNIT), _shifted(squares, 2 * (finest + scale + _UNIT))


def _shifted(value: int, bits: int) -> int:
    # To the right only zeros are shifted out: no value has bits below the unit.
    return value << bits if bits >= 0 else value >> -bits


def _add(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    return left[0] + right[0], left[1] + right[1]


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
