"""The k-th largest number of a stream, exactly, in memory that depends on neither the rows nor k.

A first interval, guessed from a sample, is scanned; then the interval that holds the k-th largest number is split into
2**16 buckets and shrunk to one of them, until its numbers fit in memory or are all equal. Buckets are cut in an
integer image of float64 that keeps the order, so that no rounding can put a number on the wrong side. A poor guess
costs passes, never exactness. Scans of parts are added up, so that parts may be scanned anywhere and in any order;
many searches share each pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.errors import IntegrityError
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.kernels import scan_scores
from pipeline.metrics.terms import TermCache
from pipeline.selection.passes import Passes
from pipeline.selection.source import Part
from pipeline.selection.streams import Stream

_BUFFER: Final = 2**18  # numbers that one search holds at a time
_BUCKET_BITS: Final = 16
_FEW_SEARCHES: Final = 64
_FEWER_BITS: Final = 10
_SIGN: Final = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The k-th largest number, how many are above it, and how many equal it."""

    threshold: float
    num_above: int
    num_tied: int


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers from low to high, both included, as unsigned images."""

    low: int
    high: int

    def shift(self, bits: int) -> int:
        """Bits to drop so that the images of the interval fall into 2**bits buckets."""
        return max(0, (self.high - self.low).bit_length() - bits)

    def bucket(self, index: int, bits: int) -> "Interval":
        """One of these buckets."""
        low = self.low + (index << self.shift(bits))
        return Interval(low, min(self.high, low + (1 << self.shift(bits)) - 1))


@dataclass(slots=True, kw_only=True)
class Scan:
    """Numbers above an interval, those in it, and either all of the latter or their histogram."""

    interval: Interval
    bits: int
    limit: int
    num_seen: int = 0
    num_above: int = 0
    num_inside: int = 0
    num_held: int = 0
    held: list[FloatArray] = field(default_factory=list)
    histogram: npt.NDArray[np.int64] | None = None

    def add(self, values: FloatArray) -> None:
        """Take in numbers."""
        inside = np.empty(values.size)
        found = scan_scores(values, _score(self.interval.low), _score(self.interval.high), inside)
        self.num_seen += values.size
        self.num_above += found.num_above
        self._hold(inside[: found.num_inside].copy())

    def merge(self, other: "Scan") -> None:
        """Take in the scan of other numbers."""
        self.num_seen += other.num_seen
        self.num_above += other.num_above
        if other.histogram is not None:
            self._spill()
            assert self.histogram is not None  # noqa: S101
            self.histogram += other.histogram
            self.num_inside += other.num_inside - other.num_held
        for part in other.held:
            self._hold(part)

    def inside(self) -> FloatArray | None:
        """All numbers of the interval; None where there are too many to hold."""
        if self.histogram is not None:
            return None
        return np.concatenate(self.held) if self.held else np.zeros(0)

    def counts(self) -> npt.NDArray[np.int64]:
        """Numbers in each bucket of the interval."""
        self._spill()
        assert self.histogram is not None  # noqa: S101
        return self.histogram

    def _hold(self, inside: FloatArray) -> None:
        if not inside.size:
            return
        self.num_inside += inside.size
        self.num_held += inside.size
        self.held.append(inside)
        if self.num_held > self.limit:
            self._spill()

    def _spill(self) -> None:
        if self.histogram is None:
            self.histogram = np.zeros(1 << self.bits, dtype=np.int64)
        if self.held:
            offsets = _images(np.concatenate(self.held)) - np.uint64(self.interval.low)
            buckets = (offsets >> np.uint64(self.interval.shift(self.bits))).astype(np.int64)
            self.histogram += np.bincount(buckets, minlength=1 << self.bits)
            self.held, self.num_held = [], 0


@dataclass(slots=True)
class Search:
    """The search for the k-th largest of `num_values` numbers, 1 <= k <= num_values.

    sample: some of the numbers, for a first guess; it may be empty or misleading.
    """

    k: int
    num_values: int
    sample: FloatArray = field(default_factory=lambda: np.zeros(0))
    cut: Cut | None = None
    interval: Interval = field(init=False)
    _around: Interval = field(init=False)

    def __post_init__(self) -> None:
        self._around = Interval(_image(-math.inf), _image(math.inf))
        self.interval = _guess(self.sample, self.k / self.num_values) or self._around

    def advance(self, scan: Scan) -> None:
        """Take in the scan of `interval` over all numbers.

        Raises:
            IntegrityError: the numbers are not those of earlier passes.
        """
        if scan.num_seen != self.num_values:
            raise IntegrityError(
                f"a pass over the scores gave {scan.num_seen} rows, an earlier one {self.num_values}: the source "
                "changed meanwhile. Select from a dataset that nothing writes to."
            )
        interval, rank = self.interval, self.k - scan.num_above
        if rank <= 0:
            self._narrow(Interval(interval.high + 1, self._around.high))
        elif rank > scan.num_inside:
            self._narrow(Interval(self._around.low, interval.low - 1))
        elif (inside := scan.inside()) is not None:
            self.cut = cut_among(inside, rank, scan.num_above)
        else:
            # From the highest bucket down, the one in which `rank` numbers are reached.
            counts = scan.counts()
            from_top = np.cumsum(counts[::-1])
            place = int(np.searchsorted(from_top, rank))
            index = counts.size - 1 - place
            bucket = interval.bucket(index, scan.bits)
            if bucket.low == bucket.high:
                num_tied = int(counts[index])
                num_above = scan.num_above + int(from_top[place]) - num_tied
                self.cut = Cut(threshold=_score(bucket.low), num_above=num_above, num_tied=num_tied)
            self._narrow(bucket)

    def _narrow(self, interval: Interval) -> None:
        if interval.low > interval.high:
            raise IntegrityError("the scores changed between passes; select from a dataset that nothing writes to.")
        self._around = self.interval = interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanTask:
    """Scans the streams of one part: one interval a group, None where that search is over; picklable."""

    streams: Sequence[Stream]
    intervals: Sequence[Sequence[Interval | None]]
    bits: int
    limit: int

    def __call__(self, part: Part) -> list[list[Scan | None]]:
        """One scan a stream and group."""
        scans = self.empty()
        columns = [name for stream in self.streams for name in stream.columns]
        for block in part.blocks(columns):
            cache = TermCache(block.rows)
            for stream, of_stream in zip(self.streams, scans, strict=True):
                for scan, values in zip(of_stream, stream.values(block, cache), strict=True):
                    if scan is not None:
                        scan.add(values)
        return scans

    def empty(self) -> list[list[Scan | None]]:
        """Scans of no numbers."""
        return [[self._scan(interval) for interval in of_stream] for of_stream in self.intervals]

    def _scan(self, interval: Interval | None) -> Scan | None:
        return None if interval is None else Scan(interval=interval, bits=self.bits, limit=self.limit)


def find_cuts(
    passes: Passes, parts: Sequence[Part], streams: Sequence[Stream], searches: Sequence[Sequence[Search | None]]
) -> list[list[Cut | None]]:
    """The cut of every search, one a stream and group, None where none is wanted; passes until the last is found.

    Raises:
        DataError: a score overflows.
        IntegrityError: the parts do not give the same rows each time.
    """
    num_searches = sum(len(of_stream) for of_stream in searches)
    bits = _BUCKET_BITS if num_searches <= _FEW_SEARCHES else _FEWER_BITS
    limit = _BUFFER if num_searches <= _FEW_SEARCHES else max(1, _BUFFER * _FEW_SEARCHES // num_searches)
    while open_streams := [i for i, of_stream in enumerate(searches) if any(map(_is_open, of_stream))]:
        task = ScanTask(
            streams=[streams[i] for i in open_streams],
            intervals=[
                [s.interval if s is not None and s.cut is None else None for s in searches[i]] for i in open_streams
            ],
            bits=bits,
            limit=limit,
        )
        whole = task.empty()
        for result in passes.run(task, parts):
            for of_whole, of_part in zip(whole, result, strict=True):
                for total, scan in zip(of_whole, of_part, strict=True):
                    if total is not None and scan is not None:
                        total.merge(scan)
        for i, of_stream in zip(open_streams, whole, strict=True):
            for search, scan in zip(searches[i], of_stream, strict=True):
                if search is not None and scan is not None:
                    search.advance(scan)
    return [[None if search is None else search.cut for search in of_stream] for of_stream in searches]


def _is_open(search: Search | None) -> bool:
    return search is not None and search.cut is None


def cut_among(inside: FloatArray, rank: int, num_above: int) -> Cut:
    """The cut at the `rank`-th largest of numbers that have `num_above` others above them."""
    threshold = float(np.partition(inside, inside.size - rank)[inside.size - rank])
    return Cut(
        threshold=threshold,
        num_above=num_above + int(np.count_nonzero(inside > threshold)),
        num_tied=int(np.count_nonzero(inside == threshold)),
    )


def _guess(sample: FloatArray, share: float) -> Interval | None:
    """Numbers within four standard errors of this rank, given as a share from the top, by the sample."""
    if not sample.size:
        return None
    place = sample.size * (1 - share)
    margin = 4 * math.sqrt(sample.size * share * (1 - share)) + 1
    low, high = math.floor(place - margin), math.ceil(place + margin)
    ordered = np.partition(sample, [max(low, 0), min(high, sample.size - 1)])
    return Interval(
        _image(float(ordered[low])) if low >= 0 else _image(-math.inf),
        _image(float(ordered[high])) if high < sample.size else _image(math.inf),
    )


def _images(values: FloatArray) -> npt.NDArray[np.uint64]:
    """Unsigned integers in the order of the numbers, without gaps: both zeros are one integer, 2**63."""
    bits = values.view(np.uint64)
    return np.where(np.signbit(values), -bits, bits | np.uint64(_SIGN))


def _image(score: float) -> int:
    return int(_images(np.array([score]))[0])


def _score(image: int) -> float:
    bits = image ^ _SIGN if image & _SIGN else 2**64 - image
    return float(np.array([bits], dtype=np.uint64).view(np.float64)[0])
