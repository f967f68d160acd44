"""Ranks, and how far two orders of the same rows agree."""

import numpy as np

from pipeline.metrics.columns import FloatArray


def average_ranks(values: FloatArray) -> FloatArray:
    """Ranks from 0, shape (N,), float64; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    firsts = np.cumsum(counts) - counts
    ranks: FloatArray = (firsts + (counts - 1) / 2)[place]
    return ranks


def spearman(first: FloatArray, second: FloatArray) -> float:
    """Spearman's rank correlation of two values a row, -1 to 1; NaN where all values of one are equal.

    Args:
        first: shape (N,), N at least 2.
        second: shape (N,).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(average_ranks(first), average_ranks(second))[0, 1])
