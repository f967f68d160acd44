import numpy as np
import pytest

from pipeline.config import Metric, Objective
from pipeline.metrics import METRICS, Ranker, explicit_margin, implicit_margin, moments_of
from tests.metrics.tables import scored_table, swapped

RAW = Metric(normalise="none", weight=2.5)


def moments_over(table, ranker):
    return {name: moments_of(values) for name, values in ranker.compute(table).items()}


def test_raw_potential_is_target_minus_weighted_present_margin():
    table = scored_table(100)
    scores = Ranker(objective=Objective(), metric=RAW).score(table, {})
    expected = explicit_margin(table) - 2.5 * np.abs(implicit_margin(table, Objective()))
    assert (scores == expected).all()


def test_z_scored_potential_subtracts_standard_scores():
    table = scored_table(1000)
    ranker = Ranker(objective=Objective(), metric=Metric(weight=2.5))
    explicit, implicit = explicit_margin(table), np.abs(implicit_margin(table, Objective()))
    z = [(x - x.mean()) / x.std() for x in (explicit, implicit)]
    assert np.allclose(ranker.score(table, moments_over(table, ranker)), z[0] - 2.5 * z[1], rtol=1e-12, atol=1e-12)


def test_signed_implicit_margin_is_an_option():
    table = scored_table(100)
    scores = Ranker(objective=Objective(), metric=RAW.model_copy(update={"implicit": "signed"})).score(table, {})
    assert (scores == explicit_margin(table) - 2.5 * implicit_margin(table, Objective())).all()


def test_a_pair_the_reward_contradicts_ranks_below_its_swap():
    table = scored_table(200)
    ranker = Ranker(objective=Objective(), metric=RAW)
    contradicted = explicit_margin(table) < 0
    assert (ranker.score(table, {}) < ranker.score(swapped(table), {}))[contradicted].all()


def test_weight_zero_reads_no_implicit_column():
    ranker = Ranker(objective=Objective(), metric=Metric(weight=0.0, normalise="none"))
    assert ranker.columns == ("reward_chosen", "reward_rejected")
    assert (ranker.score(scored_table(9), {}) == explicit_margin(scored_table(9))).all()


def test_implicit_metric_puts_the_least_separated_pair_first():
    table = scored_table(300)
    scores = Ranker(objective=Objective(), metric=Metric(name="implicit")).score(table, {})
    assert np.argmax(scores) == np.argmin(np.abs(implicit_margin(table, Objective())))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("explicit", ["signed", "absolute", "candidates"])
@pytest.mark.parametrize("objective", ["simpo", "dpo"])
def test_declared_columns_are_all_that_a_score_needs(name, explicit, objective):
    table = scored_table(64)
    ranker = Ranker(objective=Objective(name=objective), metric=Metric(name=name, explicit=explicit))
    moments = moments_over(table, ranker)
    assert (ranker.score(table.select(ranker.columns), moments) == ranker.score(table, moments)).all()


@pytest.mark.parametrize("name", METRICS)
def test_scores_do_not_depend_on_blocks_or_order(name):
    table = scored_table(500)
    ranker = Ranker(objective=Objective(), metric=Metric(name=name))
    moments = moments_over(table, ranker)
    whole = ranker.score(table, moments)
    parts = [ranker.score(table.slice(i, 77), moments) for i in range(0, 500, 77)]
    assert (np.concatenate(parts) == whole).all()
    order = np.random.default_rng(1).permutation(500)
    assert (ranker.score(table.take(order), moments) == whole[order]).all()


def test_random_scores_depend_on_id_and_seed_alone():
    table = scored_table(2000)
    first, second = (
        Ranker(objective=Objective(), metric=Metric(name="random"), seed=s).score(table, {}) for s in (1, 2)
    )
    other_rewards = scored_table(2000, id=table.column("id"), seed=5)
    assert (Ranker(objective=Objective(), metric=Metric(name="random"), seed=1).score(other_rewards, {}) == first).all()
    assert (first != second).all()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert 0 <= first.min() < 0.01 < 0.99 < first.max() < 1


def test_negative_zero_is_not_told_from_zero():
    table = scored_table(reward_chosen=[0.0, -0.0], reward_rejected=[0.0, 0.0])
    scores = Ranker(objective=Objective(), metric=Metric(name="explicit")).score(table, {})
    assert not np.signbit(scores).any()


def test_an_infinite_term_gives_no_score():
    table = scored_table(reward_chosen=[np.inf, 1e308, 1.0], reward_rejected=[0.0, -1e308, 0.0])
    scores = Ranker(objective=Objective(), metric=Metric(name="explicit")).score(table, {})
    assert np.array_equal(scores, [np.nan, np.nan, 1.0], equal_nan=True)
