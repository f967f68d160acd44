"""Small samples of a stream: one for first guesses, and one that any order and partition of the rows gives alike."""

from collections.abc import Mapping
from typing import Final, Generic, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.metrics.columns import FloatArray
from pipeline.metrics.ids import HashArray, hash_ids

Name = TypeVar("Name", bound=str)

STRIDED_ROWS: Final = 2**16
DRAWN_ROWS: Final = 2**18
_SEED: Final = 0x73616D706C65


class StridedSample(Generic[Name]):
    """Every stride-th row of a stream, the stride doubling whenever the sample is full; for guesses only."""

    def __init__(self) -> None:
        self.parts: list[dict[Name, FloatArray]] = []
        self.stride = 1
        self.seen = 0
        self.size = 0

    def add(self, values: Mapping[Name, FloatArray]) -> None:
        """Take in the next rows, one array a quantity."""
        part = {name: array[-self.seen % self.stride :: self.stride].copy() for name, array in values.items()}
        self.seen += len(next(iter(values.values())))
        self.size += len(next(iter(part.values())))
        self.parts.append(part)
        self._shrink()

    def merge(self, other: "StridedSample[Name]") -> None:
        """Take in the sample of another stream; the denser of the two is thinned first."""
        while self.stride < other.stride and self.parts:
            self.halve()
        while other.stride < self.stride and other.parts:
            other.halve()
        self.stride = max(self.stride, other.stride)
        self.parts += other.parts
        self.size += other.size
        self.seen += other.seen
        self._shrink()

    def rows(self) -> dict[Name, FloatArray]:
        """The sampled rows, one array a quantity; empty without any."""
        names = self.parts[0] if self.parts else ()
        return {name: np.concatenate([part[name] for part in self.parts]) for name in names}

    def _shrink(self) -> None:
        while self.size > STRIDED_ROWS:
            self.halve()

    def halve(self) -> None:
        """Keep every other row."""
        self.parts = [{name: array[::2] for name, array in self.rows().items()}]
        self.size = (self.size + 1) // 2
        self.stride *= 2


class DrawnSample(Generic[Name]):
    """The rows whose ids have the smallest hashes: the same rows whatever their order, parts and merging.

    Holds all rows of a small stream, and a uniform sample of DRAWN_ROWS of a large one.
    """

    def __init__(self) -> None:
        self.hashes: HashArray = np.zeros(0, dtype=np.uint64)
        self.values: dict[Name, FloatArray] = {}
        self._highest: int | None = None

    def add(self, ids: pa.Array, values: Mapping[Name, FloatArray]) -> None:
        """Take in rows: their ids, and one array a quantity."""
        hashes = hash_ids(ids, _SEED)
        picks = slice(None) if self._highest is None else np.flatnonzero(hashes <= np.uint64(self._highest))
        self._join(hashes[picks], {name: array[picks] for name, array in values.items()})

    def merge(self, other: "DrawnSample[Name]") -> None:
        """Take in the sample of other rows."""
        self._join(other.hashes, other.values)

    def rows(self) -> dict[Name, FloatArray]:
        """The rows in order of hash, one array a quantity; empty without any."""
        if self.hashes.size > DRAWN_ROWS:
            self._thin()
        order = np.lexsort([*self.values.values(), self.hashes])
        return {name: array[order] for name, array in self.values.items()}

    def _join(self, hashes: HashArray, values: Mapping[Name, FloatArray]) -> None:
        if not self.values:
            self.values = {name: array.copy() for name, array in values.items()}
            self.hashes = hashes.copy()
        elif hashes.size:
            self.hashes = np.concatenate([self.hashes, hashes])
            self.values = {name: np.concatenate([array, values[name]]) for name, array in self.values.items()}
        if self.hashes.size >= 2 * DRAWN_ROWS:
            self._thin()

    def _thin(self) -> None:
        # Rows of equal hashes stay or go together, so that the sample is a set of rows and not of an order.
        self._highest = int(np.partition(self.hashes, DRAWN_ROWS - 1)[DRAWN_ROWS - 1])
        picks = np.flatnonzero(self.hashes <= np.uint64(self._highest))
        self.hashes = self.hashes[picks]
        self.values = {name: array[picks] for name, array in self.values.items()}
