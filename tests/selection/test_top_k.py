"""Which rows are kept: the first of a full sort, whatever the order, the parts and the units of the rows."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Metric, Objective, Select
from pipeline.errors import DataError, SchemaError
from pipeline.selection import Query, select, select_many
from pipeline.selection.rules import num_selected
from tests.metrics.tables import OF_ONE_REWARD, scored_table, swapped
from tests.selection.sources import (
    EXPLICIT,
    SIMPO,
    CountedSource,
    best_first,
    kept_ids,
    margins,
    run,
    source_of,
    subset,
    without,
)

RAW = Metric(normalise="none")


def chosen(table, metric, *, objective=SIMPO, **rule):
    return kept_ids(select(source_of(table), objective, metric, Select(**rule)), table)


# Rewards of few values, so that scores tie.
TIED = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-2, 2).map(float), min_size=n, max_size=n),
        st.lists(st.sampled_from([-10.0, -20.0]), min_size=n, max_size=n),
        st.integers(1, n),
    )
)


@settings(max_examples=60)
@given(TIED, st.sampled_from(["explicit", "potential", "implicit", "random"]))
def test_kept_rows_are_the_first_k_of_a_full_sort(case, name):
    rewards, logps, k = case
    table = scored_table(reward_chosen=rewards, reward_rejected=[0.0] * len(rewards), policy_logp_chosen=logps)
    query = Query(objective=SIMPO, metric=Metric(name=name, normalise="none"), rule=Select(k=k))
    [found] = select_many(source_of(table), [query])
    first = sorted(best_first(table, found.ranking.scores)[:k])
    assert found.selection.positions.tolist() == first
    assert found.selection.scores.tolist() == found.ranking.scores[first].tolist()


def outcome(source, metric, k):
    """The selection, or what is wrong: both must be the same for the same rows."""
    try:
        return select(source, SIMPO, metric, Select(k=k)).to_dict()
    except DataError as error:
        return str(error)


@settings(max_examples=40)
@given(TIED, st.randoms(use_true_random=False), st.sampled_from(sorted(OF_ONE_REWARD)))
def test_order_and_partition_do_not_move_a_bit(case, random, name):
    rewards, logps, k = case
    table = scored_table(reward_chosen=rewards, policy_logp_chosen=logps)
    metric = Metric(name=name, normalise="zscore" if len(rewards) > 1 else "none")
    order = list(range(table.num_rows))
    random.shuffle(order)
    sizes = tuple(random.randint(1, 9) for _ in range(5))
    cuts = tuple(random.random() for _ in range(3))
    shuffled = CountedSource(table.take(order), sizes, cuts)
    assert outcome(shuffled, metric, k) == outcome(source_of(table), metric, k)


@settings(max_examples=40)
@given(TIED, st.integers(0, 60))
def test_best_of_all_is_best_of_the_best_of_parts(case, cut):
    rewards, _, k = case
    table = margins(rewards)
    parts = [part for part in (table.slice(0, cut), table.slice(cut)) if part.num_rows]
    best = []
    for part in parts:
        selection = select(source_of(part), SIMPO, EXPLICIT, Select(k=min(k, part.num_rows)))
        best.append(subset(selection, part).select(table.column_names))
    assert chosen(pa.concat_tables(best), EXPLICIT, k=k) == chosen(table, EXPLICIT, k=k)


@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from([0.25, 2.0, 64.0]), st.sampled_from([-3.0, 0.0, 1024.0]))
def test_z_scored_potential_ignores_shift_and_scale_of_the_reward(seed, scale, shift):
    table = scored_table(200, seed=seed)
    reward = table.column("reward_chosen").to_numpy()
    base = scored_table(200, seed=seed, reward_rejected=np.zeros(200))
    moved = scored_table(200, seed=seed, reward_chosen=reward * scale + shift, reward_rejected=np.zeros(200))
    assert chosen(moved, Metric(), fraction=0.3) == chosen(base, Metric(), fraction=0.3)


def test_beta_cancels_in_the_z_score_and_counts_without_it():
    table = scored_table(500)
    low, high = Objective(beta=0.5), Objective(beta=8.0)
    assert chosen(table, Metric(), objective=low, k=100) == chosen(table, Metric(), objective=high, k=100)
    assert chosen(table, RAW, objective=low, k=100) != chosen(table, RAW, objective=high, k=100)


def test_swapping_every_pair_turns_the_explicit_ranking_round():
    table = scored_table(100)
    assert chosen(swapped(table), EXPLICIT, k=40) == set(table.column("id").to_pylist()) - chosen(table, EXPLICIT, k=60)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_rows_that_all_tie_are_kept_by_id(k):
    table = scored_table(id=["d", "b", "e", "a", "c"], reward_chosen=[1.0] * 5, reward_rejected=[0.0] * 5)
    selection = run(table, k=k)
    assert kept_ids(selection, table) == set("abcde"[:k])
    assert (selection.cuts[None].num_tied, selection.cuts[None].num_tied_kept) == (5, k)


def test_kept_rows_stay_in_source_order_with_their_margins():
    table = margins([3.0, 0.0, 5.0, 4.0])
    kept = subset(run(table, k=3), table)
    assert kept.column("margin_explicit").to_pylist() == [3.0, 5.0, 4.0]
    assert kept.column("potential").to_pylist() == [3.0, 5.0, 4.0]
    assert kept.column_names == [*table.column_names, "margin_explicit", "margin_implicit", "potential"]


@pytest.mark.parametrize("labels", ["keep", "swap"])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_parts_of_the_kept_rows_are_slices_of_all_of_them(size, labels):
    table = scored_table(40)
    columns = ["id", "reward_chosen", "reward_rejected"]
    selection = run(table, Metric(), k=25, labels=labels)
    whole = subset(selection, table).select([*columns, "margin_explicit", "margin_implicit", "potential"])
    for start, stop in ((0, 25), (0, 9), (9, 10), (10, 25), (20, 99), (7, 7)):
        found = pa.concat_tables(selection.rows(CountedSource(table, (size,)), columns, slice(start, stop)))
        assert found.equals(whole.slice(start, stop - start))


def test_one_row_is_selected_without_moments_and_refused_with_them():
    table = scored_table(1)
    assert len(chosen(table, RAW, fraction=1.0)) == 1
    with pytest.raises(DataError, match="margin_explicit has no spread"):
        chosen(table, Metric(), fraction=1.0)


def test_all_rows_can_be_kept():
    table = scored_table(100)
    assert chosen(table, Metric(), k=100) == set(table.column("id").to_pylist())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("column", ["reward_chosen", "policy_logp_rejected"])
def test_rows_without_a_finite_margin_are_counted_and_never_kept(bad, column):
    good = scored_table(20)
    values = good.column(column).to_pylist()
    values[3] = values[11] = bad
    table = scored_table(20, **{column: values})
    selection = run(table, Metric(), fraction=1.0)
    left = without(table, [3, 11])
    assert kept_ids(selection, table) == set(left.column("id").to_pylist())
    assert sum(selection.excluded.values()) == 2
    assert selection.num_ranked == selection.k == 18
    # The others are ranked as if the bad rows were not there.
    alone = run(left, Metric(), k=1)
    assert selection.fitted.to_dict() == alone.fitted.to_dict()


def test_zero_tokens_is_a_counted_drop():
    table = scored_table(10, num_tokens_chosen=[0, *[5] * 9])
    selection = run(table, Metric(), fraction=1.0)
    assert selection.excluded == {"margin_explicit_not_finite": 0, "margin_implicit_abs_not_finite": 1, "duplicate": 0}


def test_a_metric_without_the_implicit_margin_needs_no_policy():
    nothing = dict.fromkeys(["policy_logp_chosen", "policy_logp_rejected", "num_tokens_chosen", "num_tokens_rejected"])
    table = scored_table(20, **nothing)
    for metric in (EXPLICIT, Metric(name="random"), Metric(weight=0.0)):
        assert subset(run(table, metric, k=5), table).column("margin_implicit").null_count == 5


def test_zero_spread_is_refused_only_where_the_term_counts():
    table = scored_table(20, policy_logp_chosen=[-5.0] * 20, policy_logp_rejected=[-5.0] * 20)
    same_length = table.set_column(
        table.column_names.index("num_tokens_chosen"), "num_tokens_chosen", table.column("num_tokens_rejected")
    )
    with pytest.raises(DataError, match=r"margin_implicit_abs has no spread .* spread 0\.0, 20 ranked rows"):
        chosen(same_length, Metric(), k=5)
    for metric in (Metric(weight=0.0), RAW, EXPLICIT):
        assert len(chosen(same_length, metric, k=5)) == 5


def test_a_model_that_was_not_run_is_one_clear_error():
    table = scored_table(5, reference_logp_chosen=None, reference_logp_rejected=None)
    with pytest.raises(SchemaError, match=r"objective dpo reads reference_logp_chosen, .* null in all 5 scored rows"):
        chosen(table, Metric(), objective=Objective(name="dpo"), k=1)
    with pytest.raises(SchemaError, match="add a `reward` section"):
        chosen(scored_table(5, reward_chosen=None), Metric(), k=1)
    with pytest.raises(SchemaError, match=r"set metric\.explicit to signed"):
        chosen(scored_table(5, rewards_all=None), Metric(explicit="candidates"), k=1)


def test_a_missing_column_and_a_column_of_text_are_named():
    with pytest.raises(SchemaError, match="num_tokens_rejected"):
        chosen(scored_table(5).drop_columns(["num_tokens_rejected"]), Metric(), k=1)
    table = scored_table(5)
    with pytest.raises(SchemaError, match="reward_chosen has type string"):
        chosen(table.set_column(1, "reward_chosen", table.column("id")), EXPLICIT, k=1)


def test_no_rows_and_no_finite_rows_are_errors():
    with pytest.raises(DataError, match="no scored rows"):
        chosen(scored_table(0), EXPLICIT, k=1)
    with pytest.raises(DataError, match="none of 2 scored rows can be ranked"):
        chosen(scored_table(reward_chosen=[math.nan, math.inf]), EXPLICIT, k=1)


def test_a_weight_that_overflows_is_an_error():
    with pytest.raises(DataError, match="overflows"):
        chosen(scored_table(50), Metric(normalise="none", weight=1e308), k=5)


@pytest.mark.parametrize("num_rows", [1, 7, 10, 99, 100, 1000, 59_876])
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.4, 0.5, 1.0])
def test_a_fraction_keeps_as_many_rows_as_the_authors_code(fraction, num_rows):
    if int(fraction * num_rows):
        assert num_selected(Select(fraction=fraction), num_rows) == int(fraction * num_rows)


def test_a_fraction_is_the_decimal_it_was_written_as():
    assert int(0.29 * 100) == 28
    assert num_selected(Select(fraction=0.29), 100) == 29


def test_a_fraction_of_no_rows_and_too_large_a_k_are_refused():
    with pytest.raises(DataError, match="no row at all"):
        num_selected(Select(fraction=0.001), 999)
    with pytest.raises(DataError, match="only 3 rows"):
        num_selected(Select(k=4), 3)


def test_random_selection_repeats_by_seed_and_differs_between_seeds():
    table = scored_table(1000)
    metric = Metric(name="random")
    first = chosen(table, metric, k=400, seed=1)
    assert chosen(table.take(list(range(999, -1, -1))), metric, k=400, seed=1) == first
    assert 100 < len(first & chosen(table, metric, k=400, seed=2)) < 220  # 160 expected


def test_the_digest_names_the_set_of_kept_ids():
    table = scored_table(100)
    digests = {run(table, k=k).id_digest for k in (10, 11, 12)}
    assert len(digests) == 3
    assert all(len(digest) == 16 for digest in digests)


def test_a_subset_is_not_selected_from_again_by_mistake():
    table = scored_table(10)
    kept = subset(run(table, k=5), table)
    with pytest.raises(SchemaError, match="it is a subset"):
        subset(run(kept, k=3), kept)
