"""The scale of a margin on the log-odds of the labels, by the Bradley-Terry model.

A margin m that predicts P(the label is right) = sigmoid(a * m) is in log-odds after it is multiplied by a. Sums are
exact (`moments`), so that the order of rows moves no bit.
"""

import math
from typing import Final

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.moments import exact_mean

_MAX_STEPS: Final = 2200  # doublings over all exponents of a double, and a few dozen steps of refinement
_PRECISION: Final = 4 * np.finfo(np.float64).eps


def preference_scale(margins: FloatArray, *, name: str, smoothing: float = 0.0) -> float:
    """The a > 0 that maximises sum(log(sigmoid(a * margins))), the likelihood of labels that all say "chosen".

    margins: chosen minus rejected, signed, finite, float64 [num_rows]; zeros tell nothing and are allowed.
    name: of the margin, for errors.
    smoothing: share of labels taken to be wrong, below 1/2; above 0, margins that no label contradicts have a scale.

    Raises:
        DataError: there is no such a: no margin is below zero, so the likelihood grows with a for ever; or the
            margins contradict the labels more than they confirm them, so the best a is not positive.
    """
    largest = float(np.abs(margins).max(initial=0.0))
    if not math.isfinite(largest):
        num_bad = int(np.count_nonzero(~np.isfinite(margins)))
        raise DataError(f"{num_bad} of {margins.size} values of {name} are NaN or infinite; take such rows out first.")
    num_below, num_above = int(np.count_nonzero(margins < 0)), int(np.count_nonzero(margins > 0))
    counts = f"{name} confirms the label in {num_above} of {margins.size} rows and contradicts it in {num_below}"
    if num_above and not num_below and not smoothing:
        raise DataError(
            f"{counts}, so it has no scale on the log-odds of the labels: they were drawn from it or are separable by "
            "it. Choose a metric, or a metric.ratio such as whitening, that does not read labels."
        )
    scaled = margins / largest if largest else margins
    if not _slope(scaled, 0.0, smoothing) > 0:
        raise DataError(
            f"{counts}, in sum against the labels, so it has no positive scale on their log-odds. Check that chosen "
            "and rejected are not swapped, or choose a metric, or a metric.ratio such as whitening, without labels."
        )
    scale = _root(scaled, smoothing) / largest
    if not 0 < scale < math.inf:
        raise DataError(f"{counts}; its scale {scale!r} is out of the range of a double. Rescale the rewards.")
    return scale


def log_odds_weight(margins: FloatArray) -> FloatArray:
    """sigmoid(-margins), float64, without overflow: the weight that a logistic loss gives a pair of this margin."""
    decay = np.exp(-np.abs(margins))
    weight: FloatArray = np.where(margins > 0, decay, 1.0) / (1.0 + decay)
    return weight


def _slope(margins: FloatArray, scale: float, smoothing: float) -> float:
    """Derivative of the mean log-likelihood by the scale; falls as the scale grows."""
    return exact_mean(margins * (log_odds_weight(scale * margins) - smoothing))


def _curvature(margins: FloatArray, scale: float) -> float:
    weight = log_odds_weight(scale * margins)
    return -exact_mean(margins**2 * weight * (1.0 - weight))


def _root(margins: FloatArray, smoothing: float) -> float:
    """Where the slope is zero: Newton's steps, kept inside a bracket that shrinks."""
    low, high, scale = 0.0, math.inf, 1.0
    for _ in range(_MAX_STEPS):
        slope = _slope(margins, scale, smoothing)
        if slope == 0:
            return scale
        if slope > 0:
            low = scale
        else:
            high = scale
        curvature = _curvature(margins, scale)
        newton = scale - slope / curvature if curvature < 0 else math.nan
        if low < newton < high:
            following = min(newton, 8.0 * scale)
        else:
            following = 2.0 * scale if high == math.inf else 0.5 * (low + high)
        if abs(following - scale) <= _PRECISION * scale or not math.isfinite(following):
            return following
        scale = following
    return scale
