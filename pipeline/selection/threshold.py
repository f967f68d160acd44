"""The k-th largest score of a stream, exactly, in memory that depends on neither the rows nor k.

A first interval of scores, guessed from a sample, is scanned; then the interval that holds the k-th largest score is
split into 2**16 buckets and shrunk to one of them, until its scores fit in memory or are all equal. Buckets are cut
in an integer image of float64 that keeps the order, so that no rounding can put a score on the wrong side. A poor
guess costs passes, never exactness.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, IntegrityError
from pipeline.metrics.columns import FloatArray

ScoreStream: TypeAlias = Callable[[], Iterator[FloatArray]]
"""Starts a pass over all scores, each pass the same."""

_BUFFER: Final = 2**18  # scores held at a time
_BUCKET_BITS: Final = 16
_SIGN: Final = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The k-th largest score, how many scores are above it, and how many equal it."""

    threshold: float
    num_above: int
    num_tied: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scan:
    """One pass: scores above the interval, scores in it, and either all of the latter or their histogram."""

    num_above: int
    num_inside: int
    inside: FloatArray | None
    histogram: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Interval:
    """Scores from low to high, both included, as unsigned images."""

    low: int
    high: int

    @property
    def shift(self) -> int:
        """Bits to drop so that the images of the interval fall into 2**16 buckets."""
        return max(0, (self.high - self.low).bit_length() - _BUCKET_BITS)

    def bucket(self, index: int) -> "_Interval":
        low = self.low + (index << self.shift)
        return _Interval(low, min(self.high, low + (1 << self.shift) - 1))


def find_cut(scores: ScoreStream, k: int, sample: FloatArray, num_scores: int) -> Cut:
    """The k-th largest of `num_scores` finite scores, 1 <= k <= num_scores.

    sample: some of the scores, for a first guess; it may be empty or misleading.

    Raises:
        DataError: a score is NaN or infinite.
        IntegrityError: a pass gave another number of scores.
    """
    whole = _Interval(_image(-math.inf), _image(math.inf))
    around, interval = whole, _guess(sample, k / num_scores) or whole
    while interval.low <= interval.high:
        scan = _scan(scores, interval, num_scores)
        rank = k - scan.num_above
        if rank <= 0:
            around = interval = _Interval(interval.high + 1, around.high)
        elif rank > scan.num_inside:
            around = interval = _Interval(around.low, interval.low - 1)
        elif scan.inside is not None:
            return _cut_of(scan.inside, rank, scan.num_above)
        else:
            # From the highest bucket down, the one in which `rank` rows are reached.
            from_top = np.cumsum(scan.histogram[::-1])
            place = int(np.searchsorted(from_top, rank))
            index = scan.histogram.size - 1 - place
            interval = interval.bucket(index)
            if interval.low == interval.high:
                num_tied = int(scan.histogram[index])
                num_above = scan.num_above + int(from_top[place]) - num_tied
                return Cut(threshold=_score(interval.low), num_above=num_above, num_tied=num_tied)
            around = interval
    raise IntegrityError("the scores changed between passes; select from a dataset that nothing writes to.")


def _cut_of(inside: FloatArray, rank: int, num_above: int) -> Cut:
    threshold = float(np.partition(inside, inside.size - rank)[inside.size - rank])
    return Cut(
        threshold=threshold,
        num_above=num_above + int(np.count_nonzero(inside > threshold)),
        num_tied=int(np.count_nonzero(inside == threshold)),
    )


def _guess(sample: FloatArray, share: float) -> _Interval | None:
    """Scores within four standard errors of this rank, given as a share from the top, by the sample."""
    if not sample.size:
        return None
    place = sample.size * (1 - share)
    margin = 4 * math.sqrt(sample.size * share * (1 - share)) + 1
    low, high = math.floor(place - margin), math.ceil(place + margin)
    ordered = np.partition(sample, [max(low, 0), min(high, sample.size - 1)])
    return _Interval(
        _image(float(ordered[low])) if low >= 0 else _image(-math.inf),
        _image(float(ordered[high])) if high < sample.size else _image(math.inf),
    )


def _scan(scores: ScoreStream, interval: _Interval, num_scores: int) -> _Scan:
    low, high = _score(interval.low), _score(interval.high)
    histogram = np.zeros(1 << _BUCKET_BITS, dtype=np.int64)
    held: list[FloatArray] = []
    num_seen = num_above = num_inside = num_held = 0
    for block in scores():
        _check_finite(block)
        num_seen += block.size
        above = block > high
        num_above += int(np.count_nonzero(above))
        inside = block[(block >= low) & ~above]
        num_inside += inside.size
        held.append(inside)
        num_held += inside.size
        if num_held > _BUFFER:
            histogram += _histogram(np.concatenate(held), interval)
            held, num_held = [], 0
    if num_seen != num_scores:
        raise IntegrityError(f"a pass over the scores gave {num_seen} rows, the first one {num_scores}.")
    rest = np.concatenate(held) if held else np.zeros(0)
    if num_held == num_inside:
        return _Scan(num_above=num_above, num_inside=num_inside, inside=rest, histogram=histogram)
    histogram += _histogram(rest, interval)
    return _Scan(num_above=num_above, num_inside=num_inside, inside=None, histogram=histogram)


def _histogram(values: FloatArray, interval: _Interval) -> npt.NDArray[np.int64]:
    offsets = _images(values) - np.uint64(interval.low)
    buckets = (offsets >> np.uint64(interval.shift)).astype(np.int64)
    return np.bincount(buckets, minlength=1 << _BUCKET_BITS)


def _images(values: FloatArray) -> npt.NDArray[np.uint64]:
    """Unsigned integers in the order of the scores, without gaps: both zeros are one integer, 2**63."""
    bits = values.view(np.uint64)
    return np.where(np.signbit(values), -bits, bits | np.uint64(_SIGN))


def _image(score: float) -> int:
    return int(_images(np.array([score]))[0])


def _score(image: int) -> float:
    bits = image ^ _SIGN if image & _SIGN else 2**64 - image
    return float(np.array([bits], dtype=np.uint64).view(np.float64)[0])


def _check_finite(block: FloatArray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(block.sum())
    if math.isfinite(total) or np.isfinite(block).all():
        return
    num_bad = int(np.count_nonzero(~np.isfinite(block)))
    raise DataError(
        f"{num_bad} scores are infinite or NaN although their margins are finite: the metric overflows. "
        "Lower metric.weight, or look for margins near the largest double."
    )
