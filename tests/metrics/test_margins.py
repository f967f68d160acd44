import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import SchemaError
from pipeline.metrics import explicit_margin
from tests.metrics.tables import scored_table, swapped


def test_signed_margin_is_chosen_minus_rejected():
    table = scored_table(reward_chosen=[3.0, 1.0], reward_rejected=[1.0, 4.0])
    assert explicit_margin(table, "signed").tolist() == [2.0, -3.0]
    assert explicit_margin(table, "absolute").tolist() == [2.0, 3.0]


def test_swapping_sides_negates_the_signed_margin_only():
    table = scored_table(100)
    assert (explicit_margin(swapped(table)) == -explicit_margin(table)).all()
    for kind in ("absolute", "candidates"):
        assert (explicit_margin(swapped(table), kind) == explicit_margin(table, kind)).all()


def test_candidates_margin_is_largest_minus_smallest_of_all():
    rewards = [[1.0, -2.0, 0.5], [4.0], None, [], [1.0, None], [1.0, float("nan")], [-1.0, -1.5]]
    margin = explicit_margin(scored_table(rewards_all=rewards), "candidates")
    assert np.array_equal(margin, [3.0, 0.0, np.nan, np.nan, np.nan, np.nan, 0.5], equal_nan=True)


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float64(), 3)])
def test_candidates_of_any_list_layout_and_slice_agree(kind):
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32).astype(np.float64)
    table = pa.table({"rewards_all": pa.array(list(rows), kind)})
    expected = rows.max(axis=1) - rows.min(axis=1)
    assert (explicit_margin(table, "candidates") == expected).all()
    assert (explicit_margin(table.slice(7, 20), "candidates") == expected[7:27]).all()


def test_candidates_all_null_is_nan_and_a_number_column_is_refused():
    assert np.isnan(explicit_margin(pa.table({"rewards_all": pa.nulls(3)}), "candidates")).all()
    with pytest.raises(SchemaError, match="rewards_all has type double"):
        explicit_margin(pa.table({"rewards_all": [1.0, 2.0]}), "candidates")


def test_integer_and_half_precision_rewards_are_taken_as_numbers():
    table = pa.table(
        {"reward_chosen": pa.array([3, None]), "reward_rejected": pa.array(np.array([0.5, 1], np.float16))}
    )
    assert np.array_equal(explicit_margin(table), [2.5, np.nan], equal_nan=True)


def test_an_overflowing_margin_is_infinite_not_an_exception():
    table = scored_table(reward_chosen=[1e308], reward_rejected=[-1e308])
    assert explicit_margin(table).tolist() == [np.inf]


def test_chunked_and_single_tables_agree():
    table = scored_table(100)
    chunked = pa.concat_tables([table.slice(0, 33), table.slice(33, 0), table.slice(33)])
    for kind in ("signed", "candidates"):
        assert (explicit_margin(chunked, kind) == explicit_margin(table, kind)).all()
