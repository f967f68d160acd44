"""Means and shares with their 95 % intervals."""

import math
import statistics
from dataclasses import dataclass
from typing import Final

from pipeline.metrics.columns import FloatArray

_TAIL: Final = 0.975


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(values: FloatArray) -> Interval:
    """Mean of two or more independent values, [num_values], and its 95 % interval by Student's t."""
    mean = float(values.mean())
    half = student_t(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def student_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5), to 0.1 % from 4 degrees of freedom on."""
    z = statistics.NormalDist().inv_cdf(_TAIL)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / float(degrees**power) for power, term in enumerate(terms, start=1))


def share_interval(values: FloatArray) -> Interval:
    """Mean of independent values from 0 to 1, [num_values], and its 95 % interval by Wilson's score.

    It stays within 0 and 1, and is right for values of 0 and 1; values in between, such as ties counted as a half,
    vary less than it assumes, so that it is then too wide rather than too narrow.
    """
    share, num = float(values.mean()), len(values)
    z = statistics.NormalDist().inv_cdf(_TAIL)
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return Interval(mean=share, low=max(0.0, centre - half), high=min(1.0, centre + half))
