import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Metric, Objective
from pipeline.errors import SchemaError
from pipeline.metrics import Ranker
from pipeline.selection.source import blocks
from pipeline.selection.survey import survey
from tests.metrics.tables import scored_table
from tests.selection.sources import CountedSource, source_of

NONE = np.zeros(0, dtype=np.int64)


@given(
    st.integers(0, 120),
    st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(any),
    st.sets(st.integers(0, 119)),
)
def test_blocks_hold_every_row_but_the_duplicates_in_order(num_rows, sizes, positions):
    table = pa.table({"id": [str(i) for i in range(num_rows)]})
    duplicates = np.array(sorted(p for p in positions if p < num_rows), dtype=np.int64)
    found = list(blocks(CountedSource(table, tuple(sizes)), ["id"], duplicates))
    ids = [id_ for block in found for id_ in block.column("id").to_pylist()]
    assert ids == [str(i) for i in range(num_rows) if i not in positions]
    assert all(block.num_rows <= 16 for block in found)


def test_small_tables_are_put_together():
    found = list(blocks(CountedSource(scored_table(320), (1, 2, 3)), ["id"], NONE))
    assert len(found) < 25


def test_a_missing_column_is_named():
    with pytest.raises(SchemaError, match="reward_chosen"):
        list(blocks(source_of(scored_table(3).select(["id"])), ["reward_chosen"], NONE))


def test_sample_spreads_evenly_over_the_stream_and_stays_small():
    table = scored_table(reward_chosen=np.arange(5000.0), reward_rejected=np.zeros(5000))
    found = survey(
        blocks(CountedSource(table), ["reward_chosen", "reward_rejected"], NONE),
        Ranker(objective=Objective(), metric=Metric(name="explicit")),
    )
    sample = found.sample["margin_explicit"]
    assert 50 < sample.size <= 100
    assert len(set(np.diff(sample))) == 1
    assert sample[-1] + np.diff(sample)[0] >= 5000
