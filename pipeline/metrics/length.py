"""The part of a reward margin that the length gap explains: tokens of chosen minus tokens of rejected.

A pair and the same pair turned round say the same of a reward, so a fit is odd: f(-gap) = -f(gap), f(0) = 0. It reads
no labels. `line` is least squares through 0: what a token is worth to the reward, within a prompt. `curve` is the best
fit that rises with the gap all the way, or falls if the line does (pool adjacent violators). Both come from the sums of
the margins by gap. These are exact, so that order and parts of the rows move no bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.moments import times_power

MOST_TOKENS: Final = 2**24
_BLOCK: Final = 2**18
_DIGIT_BITS: Final = 30  # a block of digits is summed exactly in float64, 2**33 rows of them in int64

Counts: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """slope: reward of one token."""

    slope: float

    def of(self, gaps: FloatArray) -> FloatArray:
        """The explained part of the margins, float64."""
        return self.slope * gaps

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; floats come back to the bit."""
        return {"slope": self.slope}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """rewards: at these gaps, ascending from 0; straight lines between them, and flat beyond the last."""

    gaps: tuple[float, ...]
    rewards: tuple[float, ...]

    def of(self, gaps: FloatArray) -> FloatArray:
        """The explained part of the margins, float64."""
        explained: FloatArray = np.sign(gaps) * np.interp(np.abs(gaps), self.gaps, self.rewards)
        return explained

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; floats come back to the bit."""
        return {"gaps": list(self.gaps), "rewards": list(self.rewards)}


LengthFit: TypeAlias = Line | Curve


def length_fit_of(value: Mapping[str, Any]) -> LengthFit:
    """What `to_dict` wrote. Raises a KeyError, TypeError or ValueError if it is damaged."""
    if "slope" in value:
        return Line(slope=float(value["slope"]))
    return Curve(gaps=tuple(map(float, value["gaps"])), rewards=tuple(map(float, value["rewards"])))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GapSums:
    """Rows and sums of margins by the size of the gap; `+` merges two of them exactly.

    Pairs whose rejected response is longer are taken turned round. counts: by gap. digits: of the sums, by level; a
    digit of level L counts 2**(30 L), and the digits of a level are indexed by gap.
    """

    counts: Counts = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    digits: Mapping[int, Counts] = field(default_factory=dict)

    def __add__(self, other: "GapSums") -> "GapSums":
        size = max(self.counts.size, other.counts.size)
        digits = {level: np.zeros(size, dtype=np.int64) for level in {*self.digits, *other.digits}}
        counts = np.zeros(size, dtype=np.int64)
        for sums in (self, other):
            counts[: sums.counts.size] += sums.counts
            for level, of_level in sums.digits.items():
                digits[level][: of_level.size] += of_level
        return GapSums(counts=counts, digits=digits)

    def line(self) -> Line:
        """Least squares through 0; flat where every gap is 0. Rounded once."""
        gaps, counts, totals, unit = self._exact()
        squares = sum(gap * gap * count for gap, count in zip(gaps, counts, strict=True))
        products = sum(gap * total for gap, total in zip(gaps, totals, strict=True))
        return Line(slope=_quotient(products, squares, unit) if squares else 0.0)

    def curve(self) -> Curve:
        """Least squares among curves that rise, or fall, all the way; each value rounded once."""
        gaps, counts, totals, unit = self._exact()
        sign = -1 if sum(gap * total for gap, total in zip(gaps, totals, strict=True)) < 0 else 1
        pools: list[tuple[int, int, int, int]] = []  # first gap, last gap, rows, sum of margins
        for gap, count, total in zip(gaps, counts, totals, strict=True):
            first, rows, margin = gap, count, sign * total
            while pools and pools[-1][3] * rows >= margin * pools[-1][2]:
                first, _, more_rows, more_margin = pools.pop()
                rows, margin = rows + more_rows, margin + more_margin
            pools.append((first, gap, rows, margin))
        knots = {0.0: 0.0}
        for first, last, rows, margin in pools:
            # An odd curve that rises is nowhere below 0 for a gap above 0.
            knots |= dict.fromkeys((float(first), float(last)), sign * max(0.0, _quotient(margin, rows, unit)))
        return Curve(gaps=tuple(knots), rewards=tuple(knots.values()))

    def _exact(self) -> tuple[list[int], list[int], list[int], int]:
        """Gaps above 0 that rows have, how many rows, their sums in units of 2**unit, and the unit."""
        gaps = np.flatnonzero(self.counts)
        gaps = gaps[gaps > 0]
        lowest = min(self.digits, default=0)
        totals = [0] * gaps.size
        for level, digits in self.digits.items():
            shift = _DIGIT_BITS * (level - lowest)
            totals = [total + (digit << shift) for total, digit in zip(totals, digits[gaps].tolist(), strict=True)]
        return gaps.tolist(), self.counts[gaps].tolist(), totals, _DIGIT_BITS * lowest


def gap_sums(margins: FloatArray, gaps: FloatArray) -> GapSums:
    """The sums of some rows: finite margins, and gaps that are whole numbers, both [num_rows].

    Raises:
        DataError: a gap is 2**24 tokens or more.
    """
    sums = GapSums()
    for start in range(0, margins.size, _BLOCK):
        rows = slice(start, start + _BLOCK)
        sums += _block_sums(margins[rows] * np.sign(gaps[rows]), np.abs(gaps[rows]))
    return sums


def _block_sums(margins: FloatArray, gaps: FloatArray) -> GapSums:
    longest = float(gaps.max(initial=0.0))
    if longest >= MOST_TOKENS:
        raise DataError(
            f"the lengths of a pair differ by {longest:.0f} tokens; wanted fewer than {MOST_TOKENS}. Check the columns "
            "num_tokens_chosen and num_tokens_rejected, or set metric.length: keep."
        )
    places = gaps.astype(np.int64)
    digits: dict[int, Counts] = {}
    rest = margins.copy()
    while rest.any():
        # The largest value is below 2**(30 (level + 1)).
        level = -(-int(np.frexp(np.abs(rest).max())[1]) // _DIGIT_BITS) - 1
        units = np.trunc(times_power(rest, -_DIGIT_BITS * level))
        digits[level] = np.bincount(places, weights=units).astype(np.int64)
        rest -= times_power(units, _DIGIT_BITS * level)
    return GapSums(counts=np.bincount(places), digits=digits)


def _quotient(numerator: int, denominator: int, exponent: int) -> float:
    """Numerator * 2**exponent / denominator, rounded once."""
    if exponent < 0:
        return numerator / (denominator << -exponent)
    return (numerator << exponent) / denominator
