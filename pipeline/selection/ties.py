"""The m-th smallest id of a stream, exactly, in memory that does not depend on how many ids there are.

Rows of equal score are kept in order of id (UTF-8 bytes, ascending). Where many rows tie, their ids are narrowed down
pass by pass: to what the smallest and largest have in common, then by the next two bytes, until the rest fits in
memory. What is asked of the ids is asked of each part by itself, and the answers are put together.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import IntegrityError
from pipeline.shown import quoted


class IdQuestion(Protocol):
    """A picklable question about ids that come array by array; the answers for parts are put together by the asker."""

    def empty(self) -> Any:
        """The answer without ids."""
        ...

    def add(self, answer: Any, ids: pa.Array) -> Any:
        """The answer when these ids come too."""
        ...


IdSearch: TypeAlias = Generator[IdQuestion, Sequence[Any], str]
"""Yields questions, is sent the answers of all parts to each, and returns an id; searches can share passes."""

_HELD_IDS: Final = 2**15
_SYMBOLS: Final = 257  # a byte plus one, or 0 past the end of the id
_DUPLICATE: Final = "Two rows share an id and a score; name the duplicates of the scored dataset, or remove them."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """Ids from `low` to `high`, both included, whose two bytes after the shared `depth` bytes are `pair`."""

    low: str
    high: str
    depth: int
    pair: int


@dataclass(frozen=True, slots=True)
class _Extremes:
    """Smallest and largest id; None without any."""

    within: _Range | None

    def empty(self) -> tuple[str, str] | None:
        return None

    def add(self, answer: tuple[str, str] | None, ids: pa.Array) -> tuple[str, str] | None:
        bounds = pc.min_max(_inside(ids, self.within)).as_py()
        if bounds["min"] is None:
            return answer
        low, high = bounds["min"], bounds["max"]
        return (low, high) if answer is None else (min(low, answer[0]), max(high, answer[1]))


@dataclass(frozen=True, slots=True)
class _Histogram:
    """Ids by their two bytes after `depth`."""

    within: _Range | None
    depth: int

    def empty(self) -> npt.NDArray[np.int64]:
        return np.zeros(_SYMBOLS**2, dtype=np.int64)

    def add(self, answer: npt.NDArray[np.int64], ids: pa.Array) -> npt.NDArray[np.int64]:
        answer += np.bincount(_pairs(_inside(ids, self.within), self.depth), minlength=_SYMBOLS**2)
        return answer


@dataclass(frozen=True, slots=True)
class _Collect:
    """All ids."""

    within: _Range | None

    def empty(self) -> list[str]:
        return []

    def add(self, answer: list[str], ids: pa.Array) -> list[str]:
        answer += _inside(ids, self.within).to_pylist()
        return answer


def mth_smallest_id(m: int, num_ids: int) -> IdSearch:
    """Search for the m-th smallest of `num_ids` distinct ids, 1 <= m <= num_ids.

    Raises:
        IntegrityError: ids repeat, or a pass gave another number of them.
    """
    within: _Range | None = None
    while num_ids > _HELD_IDS:
        bounds = yield _Extremes(within)
        low, high = _whole_range([pair for pair in bounds if pair is not None], num_ids)
        depth = _shared_bytes(low.encode(), high.encode())
        histograms = yield _Histogram(within, depth)
        reached = np.cumsum(sum(histograms))
        _check_count(int(reached[-1]), num_ids)
        pair = int(np.searchsorted(reached, m))
        num_ids = int(reached[pair]) - (int(reached[pair - 1]) if pair else 0)
        m -= int(reached[pair]) - num_ids
        within = _Range(low=low, high=high, depth=depth, pair=pair)
    parts = yield _Collect(within)
    held = sorted(id_ for of_part in parts for id_ in of_part)
    _check_count(len(held), num_ids)
    return str(held[m - 1])


def _check_count(num_found: int, num_ids: int) -> None:
    if num_found != num_ids:
        raise IntegrityError(
            f"a pass over the ids at the threshold gave {num_found}, an earlier one {num_ids}: the source changed "
            "meanwhile. Select from a dataset that nothing writes to."
        )


def _whole_range(bounds: list[tuple[str, str]], num_ids: int) -> tuple[str, str]:
    low, high = min((b[0] for b in bounds), default=""), max((b[1] for b in bounds), default="")
    if low == high:
        raise IntegrityError(f"id {quoted(low)} stands in {num_ids} scored rows. {_DUPLICATE}")
    return low, high


def _shared_bytes(low: bytes, high: bytes) -> int:
    shortest = min(len(low), len(high))
    return next((place for place in range(shortest) if low[place] != high[place]), shortest)


def _inside(ids: pa.Array, within: _Range | None) -> pa.Array:
    if within is None:
        return ids
    bounded = ids.filter(pc.and_(pc.greater_equal(ids, within.low), pc.less_equal(ids, within.high)))
    return bounded.filter(pa.array(_pairs(bounded, within.depth) == within.pair))


def _pairs(ids: pa.Array, depth: int) -> npt.NDArray[np.int64]:
    """Two bytes from `depth` on as one integer in the order of the ids; every id has at least `depth` bytes."""
    raw = ids.cast(pa.large_binary())
    if len(raw) == 0:
        return np.zeros(0, dtype=np.int64)
    _, offsets_buffer, data_buffer = raw.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[raw.offset : raw.offset + len(raw) + 1]
    data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer is not None else np.zeros(0, dtype=np.uint8)
    ends = offsets[1:]
    pair = np.zeros(len(raw), dtype=np.int64)
    for place in (offsets[:-1] + depth, offsets[:-1] + depth + 1):
        symbol = np.zeros(len(raw), dtype=np.int64)
        there = place < ends
        symbol[there] = data[place[there]].astype(np.int64) + 1
        pair = pair * _SYMBOLS + symbol
    return pair
