"""Score sources, and ways to run passes over them, for tests."""

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.errors import SchemaError
from pipeline.selection import Selection, TableSource


@dataclass
class CountedSource:
    """A table given out in pieces of uneven size; counts readings and remembers the columns asked for.

    cuts: where it splits, as shares of the rows; equal ones give a part without rows. sampled: what its sample is.
    """

    table: pa.Table
    sizes: tuple[int, ...] = (1, 7, 0, 300)
    cuts: tuple[float, ...] = (0.1, 0.55, 0.55)
    sampled: pa.Table | None = None
    readings: list[tuple[str, ...]] = field(default_factory=list)

    def tables(self, columns) -> Iterator[pa.Table]:
        self.readings.append(tuple(columns))
        yield from pieces(self.table, self.sizes, columns)

    def split(self, num_parts):
        del num_parts
        bounds = [0, *(int(share * self.table.num_rows) for share in sorted(self.cuts)), self.table.num_rows]
        return [
            (a, _Piece(self.table.slice(a, b - a), self.sizes, self.readings, is_first=i == 0))
            for i, (a, b) in enumerate(itertools.pairwise(bounds))
        ]

    def sample(self, columns) -> Iterator[pa.Table]:
        if self.sampled is not None:
            yield from pieces(self.sampled, self.sizes, columns)


@dataclass
class _Piece:
    """A part; the first one notes the readings, for a pass reads each part once."""

    table: pa.Table
    sizes: tuple[int, ...]
    readings: list[tuple[str, ...]]
    is_first: bool

    def tables(self, columns) -> Iterator[pa.Table]:
        if self.is_first:
            self.readings.append(tuple(columns))
        yield from pieces(self.table, self.sizes, columns)


class ElsewherePasses:
    """Runs tasks as other processes would: tasks, parts and results are copied, and the last part comes first."""

    def __init__(self, num_parts: int = 5) -> None:
        self.num_parts = num_parts
        self.num_runs = 0

    def run(self, task, parts):
        self.num_runs += 1
        results = [copied(copied(task)(copied(part))) for part in reversed(parts)]
        return iter(results[::-1])


def copied(value):
    return pickle.loads(pickle.dumps(value))


def pieces(table: pa.Table, sizes, columns) -> Iterator[pa.Table]:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise SchemaError(f"the table has no {missing}")
    start = step = 0
    while start < table.num_rows:
        size = sizes[step % len(sizes)]
        yield table.select(list(columns)).slice(start, size)
        start, step = start + size, step + 1


def kept_ids(selection: Selection, table: pa.Table) -> set[str]:
    return set(selection.apply(table).column("id").to_pylist())


def source_of(table: pa.Table) -> TableSource:
    return TableSource(table=table)
