"""Exact mean and spread of float64 values, however they are split, ordered and merged.

Moments hold integers: the count, the sum in units of 2**-1074 and the sum of squares in units of 2**-2148, the
spacing of the smallest float64 and its square. So every finite float64 is in range, additions are exact, and
merging is associative and commutative to the last bit. `mean` and `std` are rounded once, to the nearest float64.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics.columns import FloatArray

_UNIT: Final = 1074  # the sum counts units of 2**-1074
_BLOCK: Final = 2**14
_DIGIT_BITS: Final = 53 - 14 - 1  # so that a block of digits is summed exactly in float64
_SPLITTER: Final = 2.0**27 + 1
_SMALLEST: Final = 2.0**-480  # beside values near 1; the square of a smaller one would lose bits


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
        if not self.count:
            return math.nan
        square = self.count * self.total_squares - self.total**2
        if square == 0:
            return 0.0
        # 56 bits of root and a sticky bit below them round the same way as the exact root does.
        extra = max(0, (2 * 56 + 2 * self.count.bit_length() - square.bit_length()) // 2 + 1)
        scaled, remainder = divmod(square << (2 * extra), self.count * self.count)
        root = math.isqrt(scaled)
        inexact = remainder != 0 or root * root != scaled
        return ((root << 1) | inexact) / (1 << (_UNIT + extra + 1))

    def to_dict(self) -> Mapping[str, int | float | None]:
        """Count, mean and standard deviation, JSON-ready; null without values."""
        if not self.count:
            return {"count": 0, "mean": None, "std": None}
        return {"count": self.count, "mean": self.mean(), "std": self.std()}


def moments_of(values: FloatArray, *, squares: bool = True) -> Moments:
    """The moments of finite float64 values of any shape; without squares they know no spread, and cost half as much.

    Raises:
        DataError: a value is NaN or infinite; count and take out such rows first.
    """
    flat = _finite(values)
    total = total_squares = 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        total += _exact_sum(block)
        total_squares += _exact_sum_of_squares(block) if squares else 0
    return Moments(count=flat.size, total=total, total_squares=total_squares)


def exact_mean(values: FloatArray) -> float:
    """The mean of finite float64 values, rounded once; NaN without values. Raises as `moments_of`."""
    flat = _finite(values)
    total = sum(_exact_sum(flat[start : start + _BLOCK]) for start in range(0, flat.size, _BLOCK))
    return Moments(count=flat.size, total=total).mean()


def _finite(values: FloatArray) -> FloatArray:
    flat = np.ascontiguousarray(values, dtype=np.float64).reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        all_finite = np.isfinite(flat.sum()) or np.isfinite(flat).all()
    if not all_finite:
        num_bad = int(np.count_nonzero(~np.isfinite(flat)))
        raise DataError(f"{num_bad} of {flat.size} values are NaN or infinite; take such rows out before the moments.")
    return flat


def _exact_sum(values: FloatArray) -> int:
    """The sum of at most _BLOCK values, in units of 2**-1074.

    The values are cut into digits of _DIGIT_BITS bits, highest first. A block of equal digits is summed in float64
    without an error, whatever the order, and what is left of a value after its digit is exact too.
    """
    largest = _magnitude(values)
    shift = _DIGIT_BITS - math.frexp(largest)[1]
    total, rest = 0, values.copy()
    while rest.any():
        shift = min(shift, _UNIT)
        digits = times_power(rest, shift)
        np.trunc(digits, out=digits)
        total += int(digits.sum()) << (_UNIT - shift)
        rest -= times_power(digits, -shift)
        shift += _DIGIT_BITS  # what is left is less than the last digit's unit
    return total


def _exact_sum_of_squares(values: FloatArray) -> int:
    """The sum of the squares of at most _BLOCK values, in units of 2**-2148.

    A square is written as the float64 nearest to it and the rest (Dekker 1971), after the values were scaled by a power
    of two, so that nothing overflows. The few values that are so small beside the largest that their rest would
    underflow are squared as integers.
    """
    exponent = math.frexp(_magnitude(values))[1]
    scaled = times_power(values, -exponent)
    small = np.abs(scaled) < _SMALLEST
    total = 0
    if small.any():
        total = sum(_units(value) ** 2 for value in values[small & (values != 0)].tolist())
        scaled = scaled[~small]
    high = _SPLITTER * scaled
    high -= high - scaled
    low = scaled - high
    squares = scaled * scaled
    rests = ((high * high - squares) + 2.0 * high * low) + low * low
    scaled_total = _exact_sum(squares) + _exact_sum(rests)
    unit = 2 * exponent + _UNIT
    return total + (scaled_total << unit if unit >= 0 else scaled_total >> -unit)


def _magnitude(values: FloatArray) -> float:
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))


def times_power(values: FloatArray, exponent: int) -> FloatArray:
    """Values * 2**exponent; a product is several times faster than ldexp, where the power is a float64."""
    product: FloatArray = values * 2.0**exponent if abs(exponent) < 1000 else np.ldexp(values, exponent)
    return product


def _units(value: float) -> int:
    numerator, denominator = value.as_integer_ratio()
    return numerator * ((1 << _UNIT) // denominator)
