"""Lists of very many small records, such as the shards of a plan or the files of a manifest, in little memory."""

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, overload

import pyarrow as pa

T = TypeVar("T")
U = TypeVar("U")

_BATCH_RECORDS: Final = 4096


class Records(Sequence[T]):
    """Records of JSON values, held as columns of Arrow: some ten bytes a value. `make` turns the fields of one into an
    item.

    Records beside each other with the same keys are a batch. The items of the batch that was asked for last are kept.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], make: Callable[..., T]) -> None:
        self._batches = [batch for batch in batches if batch.num_rows]
        self._make = make
        self._starts: list[int] = list(itertools.accumulate((batch.num_rows for batch in self._batches), initial=0))
        self._last: tuple[int, list[T]] = (-1, [])

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]], make: Callable[..., T]) -> "Records[T]":
        """Raises a ValueError, TypeError or OverflowError if they are not records of flat values."""

        def batches() -> Iterator[pa.RecordBatch]:
            for _, alike in itertools.groupby(records, key=tuple):
                while rows := list(itertools.islice(alike, _BATCH_RECORDS)):
                    yield _batch(rows)

        return cls(batches(), make)

    def of_kind(self, make: Callable[..., U]) -> "Records[U]":
        """The same records as other items. Raises as `make` if the first does not fit."""
        same = Records(self._batches, make)
        if same:
            same[0]
        return same

    def rows(self) -> Iterator[list[dict[str, Any]]]:
        """The records as they came, batch by batch."""
        return (batch.to_pylist() for batch in self._batches)

    def where(self, keep: Callable[[T], bool]) -> "Records[T]":
        """The records whose items are wanted."""
        wanted = ([keep(item) for item in self._items(index)] for index in range(len(self._batches)))
        return Records((batch.filter(mask) for batch, mask in zip(self._batches, wanted, strict=True)), self._make)

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "Records[T]": ...
    def __getitem__(self, index: int | slice) -> "T | Records[T]":
        if isinstance(index, int):
            place = range(len(self))[index]
            batch = bisect.bisect_right(self._starts, place) - 1
            return self._items(batch)[place - self._starts[batch]]
        start, stop, _ = index.indices(len(self))
        cut = []
        for first, batch in zip(self._starts, self._batches, strict=False):
            begin, end = max(start - first, 0), min(stop - first, batch.num_rows)
            if begin < end:
                cut.append(batch.slice(begin, end - begin))
        return Records(cut, self._make)

    def __iter__(self) -> Iterator[T]:
        for index in range(len(self._batches)):
            yield from self._items(index)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Records, (self._batches, self._make)

    def _items(self, batch: int) -> list[T]:
        kept, items = self._last
        if kept != batch:
            items = [self._make(**row) for row in self._batches[batch].to_pylist()]
            self._last = (batch, items)
        return items


def _batch(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    names = [*rows[0]]
    if not names:
        raise ValueError("a record has no field")
    columns = [pa.array([row[name] for row in rows]) for name in names]
    return pa.RecordBatch.from_arrays([_compact(column) for column in columns], names=names)


def _compact(column: pa.Array) -> pa.Array:
    """Texts that are repeated are held once."""
    if not pa.types.is_string(column.type):
        return column
    encoded = column.dictionary_encode()
    return encoded if 2 * len(encoded.dictionary) < len(column) else column
