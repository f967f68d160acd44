"""Pairs that the reward contradicts: which ones they are, and that swapping exchanges everything of the two sides."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import schema
from pipeline.config import Objective
from pipeline.errors import SchemaError
from pipeline.metrics.margins import explicit_margin, implicit_margin
from pipeline.selection.labels import SIDES, contradicted, swap_sides

SCHEMA = schema.scored_schema([pa.field("origin", pa.string())])
FLOATS = st.none() | st.floats(allow_nan=False, width=32)
TURNS = st.none() | st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.none() | st.text(max_size=4)}),
    max_size=3,
)


@st.composite
def tables(draw):
    """A table with every column, in one or more chunks, some of them slices; and a mask."""
    num_rows = draw(st.integers(0, 12))

    def column(field):
        if field.type == schema.MESSAGES:
            values = TURNS
        elif field.type == pa.float64():
            values = FLOATS
        elif field.type == pa.int64():
            values = st.none() | st.integers(0, 99)
        else:
            return pa.nulls(num_rows, field.type)
        return pa.array(draw(st.lists(values, min_size=num_rows, max_size=num_rows)), field.type)

    table = pa.table([column(field) for field in SCHEMA], schema=SCHEMA)
    table = table.set_column(0, SCHEMA.field(0), pa.array([f"id{i}" for i in range(num_rows)], pa.string()))
    cut = draw(st.integers(0, num_rows))
    cut_table = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    rows = np.array(draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)), dtype=np.bool_)
    return cut_table, rows


def test_every_column_that_schema_has_for_both_sides_is_exchanged():
    assert set(SIDES) == {
        ("chosen", "rejected"),
        ("reward_chosen", "reward_rejected"),
        ("lead_chosen", "lead_rejected"),
        ("policy_logp_chosen", "policy_logp_rejected"),
        ("reference_logp_chosen", "reference_logp_rejected"),
        ("num_tokens_chosen", "num_tokens_rejected"),
    }


@settings(deadline=None, max_examples=40)
@given(given_table=tables())
def test_swap_agrees_with_swapping_row_by_row(given_table):
    table, rows = given_table
    swapped = swap_sides(table, rows)
    other = {name: other for pair in SIDES for name, other in (pair, pair[::-1])}
    for before, after, turned in zip(table.to_pylist(), swapped.to_pylist(), rows, strict=True):
        for name in SCHEMA.names:
            wanted = before[other.get(name, name)] if turned else before[name]
            assert after[name] == wanted
    assert swapped.schema == table.schema


@settings(deadline=None, max_examples=40)
@given(given_table=tables())
def test_swapping_twice_gives_the_table_back(given_table):
    table, rows = given_table
    assert swap_sides(swap_sides(table, rows), rows).equals(table)


@settings(deadline=None, max_examples=40)
@given(given_table=tables(), name=st.sampled_from(["dpo", "simpo", "cpo"]))
def test_swap_negates_the_signed_margins_and_settles_the_contradiction(given_table, name):
    table, _ = given_table
    objective = Objective(name=name)
    rows = contradicted(table)
    swapped = swap_sides(table, rows)
    sign = np.where(rows, -1.0, 1.0)
    np.testing.assert_array_equal(explicit_margin(swapped), sign * explicit_margin(table))
    np.testing.assert_allclose(implicit_margin(swapped, objective), sign * implicit_margin(table, objective))
    assert not contradicted(swapped).any()


def test_contradiction_is_a_margin_below_zero_and_nothing_else():
    table = pa.table(
        {
            "reward_chosen": [1.0, 2.0, 3.0, None, float("nan"), 0.0],
            "reward_rejected": [2.0, 2.0, 1.0, 1.0, 1.0, None],
        }
    )
    assert contradicted(table).tolist() == [True, False, False, False, False, False]
    assert contradicted(table.to_batches()[0]).tolist() == contradicted(table).tolist()


def test_contradiction_cannot_be_told_without_rewards():
    with pytest.raises(SchemaError, match="reward_rejected"):
        contradicted(pa.table({"reward_chosen": [1.0]}))
    with pytest.raises(SchemaError, match="reward_chosen"):
        contradicted(pa.table({"id": ["a"]}))


def test_record_batches_stay_record_batches_and_nothing_to_swap_is_no_copy():
    batch = pa.record_batch({"id": ["a", "b"], "reward_chosen": [1.0, 2.0], "reward_rejected": [5.0, 6.0]})
    assert swap_sides(batch, np.zeros(2, dtype=np.bool_)) is batch
    swapped = swap_sides(batch, np.array([False, True]))
    assert isinstance(swapped, pa.RecordBatch)
    assert swapped.to_pydict() == {"id": ["a", "b"], "reward_chosen": [1.0, 6.0], "reward_rejected": [5.0, 2.0]}


@pytest.mark.parametrize("rows", [[True], [False]])
def test_a_side_without_the_other_is_refused_whatever_the_rows(rows):
    table = pa.table({"id": ["a"], "policy_logp_chosen": [-1.0]})
    with pytest.raises(SchemaError, match="policy_logp_chosen is there without policy_logp_rejected"):
        swap_sides(table, np.array(rows))


def test_sides_of_different_types_are_refused():
    table = pa.table({"reward_chosen": [1.0], "reward_rejected": [1]})
    with pytest.raises(SchemaError, match=r"reward_chosen has type double, reward_rejected int64"):
        swap_sides(table, np.array([True]))
