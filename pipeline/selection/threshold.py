"""The best k of some scores: the exact threshold, ties by id (UTF-8 bytes, ascending)."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.metrics.columns import FloatArray
from pipeline.selection.source import Positions
from pipeline.shown import quoted

_SAMPLE: Final = 2**15
_CHUNK: Final = 2**18

IdsAt = Callable[[Positions], pa.Array]
"""Gives the ids of the rows at ascending positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What is kept of one group: scores above `threshold`, and those that equal it up to `boundary_id`.

    threshold: -inf keeps every candidate, inf none. boundary_id: largest id kept among the rows at the threshold; None
    where all of them are. num_tied, num_tied_kept: rows at the threshold, and how many of them are kept.
    num_candidates: rows that the other rules leave.
    """

    threshold: float
    boundary_id: str | None = None
    k: int
    num_tied: int = 0
    num_tied_kept: int = 0
    num_candidates: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite threshold is null."""
        return {
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
            "boundary_id": self.boundary_id,
            "k": self.k,
            "num_tied": self.num_tied,
            "num_tied_kept": self.num_tied_kept,
            "num_candidates": self.num_candidates,
        }


def kth_largest(scores: FloatArray, k: int) -> float:
    """The k-th largest of the scores, exactly; NaN counts as none, and at least k others are there.

    A sample says roughly where it lies. One pass counts what is above and gathers the few scores around it, so that the
    array is neither copied nor sorted.
    """
    sample = scores[:: scores.size // _SAMPLE] if scores.size > 4 * _SAMPLE else scores[:0]
    sample = np.sort(sample[~np.isnan(sample)])
    if sample.size:
        num_candidates = scores.size - _count(scores, np.isnan)
        place = sample.size * (1.0 - k / num_candidates)
        margin = 4.0 * math.sqrt(sample.size) + 1.0
        low = sample[int(place - margin)] if place >= margin else -math.inf
        high = sample[int(place + margin)] if place + margin < sample.size else math.inf
        num_above = _count(scores, lambda chunk: chunk > high)
        near = _gathered(scores, low, high)
        if num_above < k <= num_above + near.size:
            return float(np.partition(near, num_above + near.size - k)[num_above + near.size - k])
    finite = scores[~np.isnan(scores)]
    return float(np.partition(finite, finite.size - k)[finite.size - k])


def _count(scores: FloatArray, test: Callable[[FloatArray], Any]) -> int:
    starts = range(0, scores.size, _CHUNK)
    return sum(int(np.count_nonzero(test(scores[start : start + _CHUNK]))) for start in starts)


def _gathered(scores: FloatArray, low: float, high: float) -> FloatArray:
    chunks = (scores[start : start + _CHUNK] for start in range(0, scores.size, _CHUNK))
    return np.concatenate([chunk[(chunk >= low) & (chunk <= high)] for chunk in chunks])


def best(scores: FloatArray, k: int, ids_at: IdsAt) -> tuple[Positions, Cut]:
    """The places of the k best scores, ascending, and the cut that keeps them.

    scores: float64 [num_rows], NaN where a row is no candidate. ids_at: ids of places in `scores`; asked for ties that
    the cut divides.

    Raises:
        IntegrityError: an id repeats among the rows at the threshold.
    """
    num_candidates = scores.size - _count(scores, np.isnan)
    if k == 0:
        return np.zeros(0, dtype=np.int64), Cut(threshold=math.inf, k=0, num_candidates=num_candidates)
    threshold = kth_largest(scores, k)
    chosen, tied = np.flatnonzero(scores > threshold), np.flatnonzero(scores == threshold)
    num_tied_kept, boundary_id = k - chosen.size, None
    num_tied = tied.size
    if num_tied_kept < num_tied:
        tied, boundary_id = first_by_id(tied, ids_at(tied), num_tied_kept)
    cut = Cut(
        threshold=threshold,
        boundary_id=boundary_id,
        k=k,
        num_tied=num_tied,
        num_tied_kept=num_tied_kept,
        num_candidates=num_candidates,
    )
    return np.sort(np.concatenate([chosen, tied])), cut


def first_by_id(places: Positions, ids: pa.Array, num: int) -> tuple[Positions, str]:
    """The `num` places whose ids come first, in that order, and the last of these ids.

    Raises:
        IntegrityError: an id repeats.
    """
    if pc.count_distinct(ids).as_py() < len(ids):
        repeated = next(id_ for id_, count in Counter(ids.to_pylist()).items() if count > 1)
        raise IntegrityError(
            f"id {quoted(repeated)} stands in several of {len(ids)} rows of equal score. Remove repeated rows from the "
            "scored dataset, or give each row an id of its own."
        )
    order = pc.sort_indices(ids).to_numpy().astype(np.int64)[:num]
    return places[order], ids[int(order[-1])].as_py()
