"""Memory of a selection depends on neither the rows nor k, even where every row ties."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Metric, Objective, Select
from pipeline.selection import select

NUM_ROWS = 2_500_000
MIB = 2**20


class WatchedSource:
    """Slices of a table, noting how much Arrow memory is in use whenever it is asked for the next one."""

    def __init__(self, table):
        self.table = table
        self.before = pa.total_allocated_bytes()
        self.peak = 0

    def tables(self, columns):
        for start in range(0, self.table.num_rows, 50_000):
            self.peak = max(self.peak, pa.total_allocated_bytes() - self.before)
            yield self.table.select(columns).slice(start, 50_000)


@pytest.mark.parametrize("tied", [True, False])
def test_peak_memory_stays_below_one_number_per_row(tied):
    names = np.random.default_rng(0).permutation(NUM_ROWS)
    rewards = np.ones(NUM_ROWS) if tied else np.sin(np.arange(NUM_ROWS) * 1.7)
    ids = pa.array(names).cast(pa.string())
    source = WatchedSource(pa.table({"id": ids, "reward_chosen": rewards, "reward_rejected": np.zeros(NUM_ROWS)}))
    tracemalloc.start()
    selection = select(source, Objective(), Metric(name="explicit"), Select(fraction=0.5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert selection.k == NUM_ROWS // 2
    assert peak < 16 * MIB < NUM_ROWS * 8
    assert source.peak < 8 * MIB
    if tied:
        assert selection.boundary_id == sorted(map(str, range(NUM_ROWS)))[selection.k - 1]
