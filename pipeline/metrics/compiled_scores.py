"""Inner loops over scores, compiled by numba; call them through `pipeline.metrics.kernels`."""

from typing import Final

import numpy as np

from pipeline.metrics.columns import FloatArray
from pipeline.metrics.compiled import compiled

_GROUP: Final = 64


@compiled
def potential_scores(
    explicit: FloatArray,
    implicit: FloatArray,
    absolute: bool,  # noqa: FBT001
    scales: tuple[float, float, float, float, float],
    out: FloatArray,
) -> int:
    """Scores into `out`, NaN where a term is not finite; how many those are."""
    mean_explicit, std_explicit, mean_implicit, std_implicit, weight = scales
    num_bad = 0
    for i in range(explicit.size):
        implied = abs(implicit[i]) if absolute else implicit[i]
        z_explicit = (explicit[i] - mean_explicit) / std_explicit
        z_implicit = (implied - mean_implicit) / std_implicit
        score = (z_explicit - weight * z_implicit) + 0.0
        finite = abs(explicit[i]) < np.inf and abs(implied) < np.inf
        num_bad += not finite
        out[i] = score if finite else np.nan
    return num_bad


@compiled
def scan_scores(scores: FloatArray, low: float, high: float, out: FloatArray) -> tuple[int, int, int]:
    """Scores above `high`; those from `low` to `high`, copied to `out`; those that are NaN or infinite."""
    num_above = num_inside = num_bad = 0
    for start in range(0, scores.size, _GROUP):
        group = scores[start : start + _GROUP]
        num_maybe = 0
        for i in range(group.size):
            num_above += group[i] > high
            num_maybe += not (group[i] > high or group[i] < low)
            num_bad += not abs(group[i]) < np.inf
        if num_maybe:
            for i in range(group.size):
                if low <= group[i] <= high:
                    out[num_inside] = group[i]
                    num_inside += 1
    return num_above, num_inside, num_bad
