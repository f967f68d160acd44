"""Statistics of the training study: win rates and gains with intervals, Holm's correction, the detectable difference.

An array is [num_seeds, num_prompts]. A difference of two arms is taken prompt by prompt and seed by seed. Then seeds
are drawn with replacement, and all prompts of a drawn seed count: to draw these with replacement too would count their
variance twice (Davison and Hinkley 1997, section 3.8). Seeds differ in all that is random, prompts included.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.metrics.intervals import Interval, student_t

K = TypeVar("K")
FloatArray = npt.NDArray[np.float64]

POWER: Final = 0.8
LEVEL: Final = 0.05
_NUM_DRAWS: Final = 10_000


def wins(after: FloatArray, before: FloatArray) -> FloatArray:
    """1 where the reward after training is higher, 0 where it is lower, one half where both are equal.

    An empty answer (nan) loses; two of them are a tie.
    """
    high = np.where(np.isnan(after), -math.inf, after)
    low = np.where(np.isnan(before), -math.inf, before)
    won: FloatArray = (high > low) + 0.5 * (high == low)
    return won


def bootstrap_interval(values: FloatArray) -> Interval:
    """The mean and its 95 % interval, by percentiles of a bootstrap over seeds; nan counts for nothing.

    The percentiles of few seeds lie too close to the mean, by the factor that Student's t and ddof 1 put right.

    Raises:
        DataError: there are fewer than two seeds.
    """
    num = len(values)
    if num < 2:
        raise DataError(f"intervals over seeds need two seeds or more; {num} is done. Let the study run on.")
    means = np.nanmean(values, axis=1)
    draws = means[np.random.default_rng(0).integers(0, num, (_NUM_DRAWS, num))].mean(axis=1)
    mean, (low, high) = float(means.mean()), np.quantile(draws, (LEVEL / 2, 1 - LEVEL / 2))
    wider = student_t(num - 1) / statistics.NormalDist().inv_cdf(1 - LEVEL / 2) * math.sqrt(num / (num - 1))
    return Interval(mean=mean, low=mean - wider * (mean - float(low)), high=mean + wider * (float(high) - mean))


def student_interval(values: Sequence[Sequence[float]]) -> Interval:
    """The same in another way, in plain Python: Student's t over the means of the seeds."""
    means = [statistics.fmean(value for value in row if not math.isnan(value)) for row in values]
    mean, half = statistics.fmean(means), student_t(len(means) - 1) * statistics.stdev(means) / math.sqrt(len(means))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def p_value(difference: FloatArray) -> float:
    """Two-sided p that the mean difference is 0: Student's t over the means of the seeds."""
    means = np.nanmean(difference, axis=1)
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    if error == 0:
        return 1.0 if means.mean() == 0 else 0.0
    return _student_tail(abs(float(means.mean())) / error, len(means) - 1)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """P-values corrected by Holm's step-down rule for all of these comparisons."""
    corrected: dict[K, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def detectable(spread: float, num_seeds: int, comparisons: int = 1) -> float:
    """The smallest true difference that is found with 80 % power at 5 %, shared out among this many comparisons.

    spread: standard deviation over seeds of the difference of two arms. Both quantiles are of Student's t, which is
    right to some per cent from 8 seeds on.
    """
    degrees = num_seeds - 1
    quantiles = _student_quantile(LEVEL / comparisons, degrees) + _student_quantile(2 * (1 - POWER), degrees)
    return quantiles * spread / math.sqrt(num_seeds)


def _student_quantile(tails: float, degrees: int) -> float:
    """The t with P(|T| > t) = tails, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_tail(middle, degrees) > tails else (low, middle)
    return low


def _student_tail(t: float, degrees: int) -> float:
    """P(|T| > t) of Student's t, by Simpson's rule over its density in the angle atan(t / sqrt(degrees))."""
    angle = math.atan(t / math.sqrt(degrees))
    nodes = np.linspace(angle, math.pi / 2, 2001)
    weights = np.ones(2001)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    area = float((weights * np.cos(nodes) ** (degrees - 1)).sum()) * (math.pi / 2 - angle) / 6000
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    return min(1.0, 2 * scale * area)
