"""Memory of a selection depends on neither the rows nor k, even where every row ties."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Metric, Objective, Select
from pipeline.selection import select
from tests.selection.sources import MadeSource


def tied_rows(positions):
    # A permutation of the positions, so that ids come in no order.
    names = (positions * 7919) % 600_011
    zeros = np.zeros(len(positions))
    ids = pa.array(np.char.mod("%08d", names).astype(object), pa.string())
    return pa.table({"id": ids, "reward_chosen": zeros + 1.0, "reward_rejected": zeros})


def spread_rows(positions):
    table = tied_rows(positions)
    values = np.sin(positions * 1.7)
    return table.set_column(1, "reward_chosen", pa.array(values))


@pytest.mark.parametrize("make", [tied_rows, spread_rows])
def test_peak_memory_stays_far_below_one_number_per_row(make):
    source = MadeSource(600_000, make, block_rows=10_000)
    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()
    selection = select(source, Objective(), Metric(name="explicit"), Select(fraction=0.5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert selection.k == 300_000
    assert peak < 600_000 * 16  # ids alone would be 40 MB
    assert pa.total_allocated_bytes() - arrow_before < 2**20
    if make is tied_rows:
        names = np.sort((np.arange(600_000) * 7919) % 600_011)
        assert selection.boundary_id == f"{names[299_999]:08d}"
