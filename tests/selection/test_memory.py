"""Memory of a selection depends on neither the rows nor k, even where every row ties."""

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Metric, Objective, Select
from pipeline.selection import Query, Threads, select_many

MIB = 2**20


class Watch:
    """The most Arrow memory in use since it was made."""

    def __init__(self):
        self.before = pa.total_allocated_bytes()
        self.peak = 0

    def look(self):
        self.peak = max(self.peak, pa.total_allocated_bytes() - self.before)


@dataclass
class WatchedSource:
    """Slices of a table, noting how much Arrow memory is in use whenever it is asked for the next one."""

    table: pa.Table
    watch: Watch

    def tables(self, columns):
        for start in range(0, self.table.num_rows, 50_000):
            self.watch.look()
            yield self.table.select(columns).slice(start, 50_000)

    def split(self, num_parts):
        size = -(-self.table.num_rows // num_parts)
        starts = range(0, self.table.num_rows, size)
        return [(start, WatchedSource(self.table.slice(start, size), self.watch)) for start in starts]

    def sample(self, columns):
        yield self.table.select(columns).slice(0, 50_000)


@pytest.mark.parametrize(
    ("num_rows", "tied", "num_threads", "most"),
    [(4_000_000, True, 1, 24), (4_000_000, False, 1, 24), (5_000_000, True, 2, 32)],
)
def test_peak_memory_stays_below_one_number_per_row(num_rows, tied, num_threads, most):
    names = np.random.default_rng(0).permutation(num_rows)
    rewards = np.ones(num_rows) if tied else np.sin(np.arange(num_rows) * 1.7)
    ids = pa.array(names).cast(pa.string())
    table = pa.table({"id": ids, "reward_chosen": rewards, "reward_rejected": np.zeros(num_rows)})
    watch = Watch()
    query = Query(objective=Objective(), metric=Metric(name="explicit"), rule=Select(fraction=0.5))
    select_many(WatchedSource(table.slice(0, 1000), Watch()), [query])  # loads and compiles what stays
    tracemalloc.start()
    selection = select_many(WatchedSource(table, watch), [query], passes=Threads(num_threads=num_threads))[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert selection.k == num_rows // 2
    assert peak < most * MIB < num_rows * 8
    assert watch.peak < 8 * MIB
    if tied:
        assert selection.boundary_id == sorted(map(str, range(num_rows)))[selection.k - 1]
