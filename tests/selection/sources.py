"""Sources that give rows out unevenly, ways to run tasks, and short forms of a selection, for tests."""

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import Metric, Objective, Select
from pipeline.selection import Query, Selection, TableSource, select, select_many
from tests.metrics.tables import scored_table

SIMPO = Objective()
EXPLICIT = Metric(name="explicit")


@dataclass
class CountedSource:
    """A table given out in pieces of uneven size; remembers what was asked for.

    cuts: where it splits, as shares of the rows; equal ones give a part without rows. readings: the columns of each
    pass over all rows. taken: of each call of `take`, the number of rows and the columns.
    """

    table: pa.Table
    sizes: tuple[int, ...] = (1, 7, 0, 300)
    cuts: tuple[float, ...] = (0.1, 0.55, 0.55)
    readings: list[tuple[str, ...]] = field(default_factory=list)
    taken: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    def tables(self, columns) -> Iterator[pa.Table]:
        self.readings.append(tuple(columns))
        yield from pieces(self.table.select(list(columns)), self.sizes)

    def take(self, positions, columns) -> Iterator[pa.Table]:
        assert (np.diff(positions) > 0).all()
        self.taken.append((positions.size, tuple(columns)))
        yield self.table.schema.empty_table().select(list(columns))
        yield from pieces(self.table.select(list(columns)).take(pa.array(positions)), self.sizes)

    def has_values(self, column) -> bool:
        return self.table.column(column).null_count < self.table.num_rows

    def split(self, num_parts):
        """A pass reads each part once, so the first part alone notes the readings."""
        bounds = [0, *(int(share * self.table.num_rows) for share in sorted(self.cuts)), self.table.num_rows]
        parts = [self.table.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
        notes = [self.readings, *([] for _ in parts[1:])]
        return [
            (start, CountedSource(part, self.sizes, (), readings))
            for start, part, readings in zip(bounds, parts, notes, strict=False)
        ]


class ElsewherePasses:
    """Runs tasks as other processes would: tasks, parts and results are copied, and the last part comes first."""

    def __init__(self, num_parts: int = 5) -> None:
        self.num_parts = num_parts

    def map(self, task, items):
        results = [copied(copied(task)(copied(item))) for item in reversed(items)]
        return iter(results[::-1])


def copied(value):
    return pickle.loads(pickle.dumps(value))


def pieces(table: pa.Table, sizes) -> Iterator[pa.Table]:
    start = step = 0
    while start < table.num_rows:
        size = sizes[step % len(sizes)]
        yield table.slice(start, size)
        start, step = start + size, step + 1


def source_of(table: pa.Table) -> TableSource:
    return TableSource(table=table)


def run(table, metric=EXPLICIT, objective=SIMPO, **rule) -> Selection:
    """What a rule selects."""
    return select(CountedSource(table), objective, metric, Select(**rule))


def found_in(table, metric, objective=SIMPO):
    """A selection of one row, with the scores of all rows."""
    query = Query(objective=objective, metric=metric, rule=Select(k=1))
    return next(select_many(CountedSource(table), [query]))


def kept_ids(selection: Selection, table: pa.Table) -> set[str]:
    return set(table.column("id").take(pa.array(selection.positions)).to_pylist())


def subset(selection: Selection, table: pa.Table, part: slice = slice(None)) -> pa.Table:
    """The kept rows as they are written."""
    return pa.concat_tables(selection.rows(CountedSource(table), table.column_names, part)).combine_chunks()


def margins(values) -> pa.Table:
    """Rows of these explicit margins."""
    return scored_table(reward_chosen=list(values), reward_rejected=[0.0] * len(values))


def with_columns(table, columns):
    for name, values in columns.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    return table


def with_texts(table, prompts, texts):
    """The table with these prompts and answers."""

    def said(contents):
        return pa.array([[{"role": "user", "content": content}] for content in contents], schema.MESSAGES)

    answers = {schema.CHOSEN: said(texts), schema.REJECTED: said("no " + text for text in texts)}
    return with_columns(table, {schema.PROMPT: said(prompts), **answers})


def without(table, rows) -> pa.Table:
    """The table without the rows at these positions."""
    return table.filter(np.isin(np.arange(table.num_rows), rows, invert=True))


def best_first(table, scores) -> list[int]:
    """Positions of the rows by (score descending, id ascending), by Python's sort; none without a score."""
    ids = table.column("id").to_pylist()
    ranked = [i for i in range(table.num_rows) if not np.isnan(scores[i])]
    return sorted(ranked, key=lambda i: (-scores[i], ids[i]))
