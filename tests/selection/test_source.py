import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Metric, Objective
from pipeline.errors import IntegrityError, SchemaError
from pipeline.metrics import Ranker
from pipeline.selection import Threads, source
from pipeline.selection.fit import fit
from pipeline.selection.source import Part, parts_of
from tests.metrics.tables import scored_table
from tests.selection.sources import CountedSource, source_of

NONE = np.zeros(0, dtype=np.int64)


@given(
    st.integers(0, 120),
    st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(any),
    st.lists(st.floats(0, 1), max_size=4),
    st.sets(st.integers(0, 119)),
)
def test_blocks_of_parts_hold_every_row_but_the_duplicates_in_order(num_rows, sizes, cuts, positions):
    table = pa.table({"id": [str(i) for i in range(num_rows)]})
    duplicates = np.array(sorted(p for p in positions if p < num_rows), dtype=np.int64)
    parts = parts_of(CountedSource(table, tuple(sizes), tuple(cuts)), duplicates, "keep", 3)
    found = [block for part in parts for block in part.blocks(["id"])]
    ids = [id_ for block in found for id_ in block.rows.column("id").to_pylist()]
    assert ids == [str(i) for i in range(num_rows) if i not in positions]
    assert all(block.rows.num_rows <= 16 for block in found)
    assert ids == [str(i) for block in found for i in block.positions]


@given(st.integers(0, 200), st.integers(1, 9))
def test_a_table_splits_into_all_its_rows_in_order(num_rows, num_parts):
    table = pa.table({"id": [str(i) for i in range(num_rows)]})
    pieces = source_of(table).split(num_parts)
    rows = [(first + i, id_) for first, piece in pieces for part in piece.tables(["id"])
            for i, id_ in enumerate(part.column("id").to_pylist())]  # fmt: skip
    assert rows == [(i, str(i)) for i in range(num_rows)]
    assert len(pieces) <= num_parts


def test_the_sample_of_a_table_has_about_as_many_rows_as_it_should_and_none_twice(monkeypatch):
    @given(st.integers(0, 300), st.integers(1, 400))
    def check(num_rows, wanted):
        monkeypatch.setattr(source, "sample_size", lambda _: wanted)
        table = pa.table({"id": [str(i) for i in range(num_rows)]})
        ids = [id_ for part in source_of(table).sample(["id"]) for id_ in part.column("id").to_pylist()]
        assert len(set(ids)) == len(ids) <= wanted
        assert len(ids) >= min(wanted, num_rows) / 2

    check()


def test_samples_grow_slower_than_their_tables():
    sizes = [source.sample_size(n) for n in (10**5, 10**6, 10**8)]
    assert sizes == sorted(sizes)
    assert sizes[0] >= 4096
    assert sizes[2] < 10**8 / 200


def test_small_tables_are_put_together():
    parts = parts_of(CountedSource(scored_table(320), (1, 2, 3), ()), NONE, "keep", 1)
    assert sum(1 for _ in parts[0].blocks(["id"])) < 25


def test_a_missing_column_is_named():
    with pytest.raises(SchemaError, match="reward_chosen"):
        list(Part(source=source_of(scored_table(3).select(["id"]))).blocks(["reward_chosen"]))


@pytest.mark.parametrize("positions", [[0, 0], [2, 1], [3]])
def test_positions_that_are_not_those_of_the_part_are_refused_after_its_last_block(positions):
    part = Part(source=source_of(scored_table(3)), duplicates=np.array(positions))
    with pytest.raises(IntegrityError, match="positions of duplicates must ascend within scored rows 0 to 2"):
        list(part.blocks(["id"]))


def test_sample_spreads_evenly_over_the_stream_and_stays_small():
    table = scored_table(reward_chosen=np.arange(5000.0), reward_rejected=np.zeros(5000))
    ranker = Ranker(objective=Objective(), metric=Metric(name="explicit"))
    parts = parts_of(CountedSource(table, cuts=()), NONE, "keep", 1)
    sample = fit(Threads(num_threads=1), parts, [ranker])[0].survey.sample.rows()["margin_explicit"]
    assert 50 < sample.size <= 100
    assert len(set(np.diff(sample))) == 1
    assert sample[-1] + np.diff(sample)[0] >= 5000
