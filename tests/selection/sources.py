"""Score sources for tests."""

from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.selection import TableSource


@dataclass
class CountedSource:
    """A table given out in pieces of uneven size; counts readings and remembers the columns asked for."""

    table: pa.Table
    sizes: tuple[int, ...] = (1, 7, 0, 300)
    readings: list[tuple[str, ...]] = field(default_factory=list)

    def tables(self, columns):
        self.readings.append(tuple(columns))
        start = step = 0
        while start < self.table.num_rows:
            size = self.sizes[step % len(self.sizes)]
            yield self.table.select(columns).slice(start, size)
            start, step = start + size, step + 1


def kept_ids(selection, table: pa.Table) -> set[str]:
    return set(selection.apply(table).column("id").to_pylist())


def source_of(table: pa.Table) -> TableSource:
    return TableSource(table=table)
