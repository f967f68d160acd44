"""Scores of every metric, against their formulas in plain numpy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Metric, Objective
from pipeline.metrics import METRICS, Ranker, explicit_margin, implicit_margin
from pipeline.metrics import ranker as ranker_module
from pipeline.metrics.listing import describe_metrics
from pipeline.metrics.normalise import Fitted, Ranks, Scale
from pipeline.metrics.ratio import RATIO_METHODS
from tests.metrics.tables import OF_ONE_REWARD, agreeing_table, scored_table, swapped
from tests.selection.sources import found_in

RAW = Metric(normalise="none", weight=2.5)
NOTHING = Fitted()
SIMPO = Objective()


def fitted_over(table, metric, objective=SIMPO):
    return found_in(table, metric, objective).selection.fitted


def margins_of(table):
    return explicit_margin(table), implicit_margin(table, SIMPO)


def score(table, metric, fitted=NOTHING, *, objective=SIMPO, seed=0):
    ranker = Ranker(objective=objective, metric=metric, seed=seed)
    return ranker.score(ranker.read(table), fitted)


def test_raw_potential_is_target_minus_weighted_present_margin():
    table = scored_table(100)
    scores = score(table, RAW)
    expected = explicit_margin(table) - 2.5 * np.abs(implicit_margin(table, SIMPO))
    assert (scores == expected).all()


def test_z_scored_potential_subtracts_standard_scores():
    table = scored_table(1000)
    metric = Metric(weight=2.5)
    explicit, implicit = explicit_margin(table), np.abs(implicit_margin(table, SIMPO))
    z = [(x - x.mean()) / x.std() for x in (explicit, implicit)]
    assert np.allclose(score(table, metric, fitted_over(table, metric)), z[0] - 2.5 * z[1], rtol=1e-12, atol=1e-12)


def test_signed_implicit_margin_is_an_option():
    table = scored_table(100)
    scores = score(table, RAW.model_copy(update={"implicit": "signed"}))
    assert (scores == explicit_margin(table) - 2.5 * implicit_margin(table, SIMPO)).all()


def test_a_pair_the_reward_contradicts_ranks_below_its_swap():
    table = scored_table(200)
    contradicted = explicit_margin(table) < 0
    assert (score(table, RAW) < score(swapped(table), RAW))[contradicted].all()


def test_weight_zero_reads_no_implicit_column():
    metric = Metric(weight=0.0, normalise="none")
    assert Ranker(objective=SIMPO, metric=metric).columns == ("reward_chosen", "reward_rejected")
    assert (score(scored_table(9), metric) == explicit_margin(scored_table(9))).all()


def test_implicit_metric_puts_the_least_separated_pair_first():
    table = scored_table(300)
    scores = score(table, Metric(name="implicit"))
    assert np.argmax(scores) == np.argmin(np.abs(implicit_margin(table, SIMPO)))


@pytest.mark.parametrize("normalise", ["robust", "rank"])
def test_other_normalisers_take_the_place_of_z_scores(normalise):
    table = scored_table(500)
    metric = Metric(weight=2.5, normalise=normalise)
    terms = dict(zip(("margin_explicit", "margin_implicit_abs"), margins_of(table), strict=True))
    terms["margin_implicit_abs"] = np.abs(terms["margin_implicit_abs"])
    if normalise == "robust":
        normalisers = {"margin_explicit": Scale(center=1.0, spread=2.0),
                       "margin_implicit_abs": Scale(center=-3.0, spread=0.25)}  # fmt: skip
        expected = (terms["margin_explicit"] - 1.0) / 2.0 - 2.5 * ((terms["margin_implicit_abs"] + 3.0) / 0.25)
    else:
        normalisers = {name: Ranks(ordered=np.sort(values)) for name, values in terms.items()}
        ranks = {name: normalisers[name].apply(values) for name, values in terms.items()}
        expected = ranks["margin_explicit"] - 2.5 * ranks["margin_implicit_abs"]
    assert (score(table, metric, Fitted(normalisers=normalisers)) == expected + 0.0).all()


def test_an_automatic_weight_is_the_fitted_one():
    table = scored_table(100)
    explicit, implicit = margins_of(table)
    automatic = score(table, Metric(weight="auto", normalise="none"), Fitted(weight=0.75))
    assert (automatic == explicit - 0.75 * np.abs(implicit)).all()


def test_an_automatic_weight_of_zero_leaves_the_explicit_margin():
    table = scored_table(100)
    assert (score(table, Metric(weight="auto", normalise="none"), Fitted(weight=0.0)) == explicit_margin(table)).all()


@pytest.mark.parametrize("name", OF_ONE_REWARD)
@pytest.mark.parametrize("explicit", ["signed", "absolute", "candidates"])
@pytest.mark.parametrize("objective", ["simpo", "dpo"])
def test_declared_columns_are_all_that_a_score_needs(name, explicit, objective):
    table = agreeing_table(64)
    metric, objective = Metric(name=name, explicit=explicit), Objective(name=objective)
    fitted = fitted_over(table, metric, objective)
    narrow = table.select(Ranker(objective=objective, metric=metric).columns)
    assert (
        score(narrow, metric, fitted, objective=objective) == score(table, metric, fitted, objective=objective)
    ).all()


@pytest.mark.parametrize("name", OF_ONE_REWARD)
def test_scores_do_not_depend_on_blocks_or_order(name, monkeypatch):
    table, metric = agreeing_table(500), Metric(name=name)
    fitted = fitted_over(table, metric)
    whole = score(table, metric, fitted)
    parts = [score(table.slice(i, 77), metric, fitted) for i in range(0, 500, 77)]
    assert (np.concatenate(parts) == whole).all()
    order = np.random.default_rng(1).permutation(500)
    assert (score(table.take(order), metric, fitted) == whole[order]).all()
    monkeypatch.setattr(ranker_module, "_BLOCK", 7)
    assert (score(table, metric, fitted) == whole).all()


def test_random_scores_depend_on_id_and_seed_alone():
    table = scored_table(2000)
    first, second = (score(table, Metric(name="random"), seed=seed) for seed in (1, 2))
    other_rewards = scored_table(2000, id=table.column("id"), seed=5)
    assert (score(other_rewards, Metric(name="random"), seed=1) == first).all()
    assert (first != second).all()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert 0 <= first.min() < 0.01 < 0.99 < first.max() < 1


def test_negative_zero_is_not_told_from_zero():
    table = scored_table(reward_chosen=[0.0, -0.0], reward_rejected=[0.0, 0.0])
    assert not np.signbit(score(table, Metric(name="explicit"))).any()


def test_a_term_that_is_not_finite_gives_no_score():
    table = scored_table(reward_chosen=[np.inf, 1e308, 1.0, np.nan], reward_rejected=[0.0, -1e308, 0.0, 0.0])
    assert np.array_equal(score(table, Metric(name="explicit")), [np.nan, np.nan, 1.0, np.nan], equal_nan=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("column", ["reward_chosen", "policy_logp_chosen"])
@pytest.mark.parametrize("name", ["potential", "bees-add", "bees-mul", "sigma-gap"])
def test_a_row_of_two_terms_has_no_score_where_one_is_not_finite(name, column, bad, monkeypatch):
    monkeypatch.setattr(ranker_module, "_BLOCK", 8)
    table = agreeing_table(40)
    fitted = fitted_over(table, Metric(name=name))
    values = table.column(column).to_pylist()
    values[3] = values[20] = bad
    scores = score(agreeing_table(40, **{column: values}), Metric(name=name), fitted)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 20]


def test_finite_terms_whose_sum_overflows_have_scores():
    table = scored_table(reward_chosen=[1.7e308] * 5 + [1.0], reward_rejected=[0.0] * 6)
    assert score(table, Metric(name="explicit")).tolist() == [1.7e308] * 5 + [1.0]


@pytest.mark.parametrize("name", METRICS)
def test_config_and_formulas_agree_on_which_margins_a_metric_reads(name):
    ranker = Ranker(objective=SIMPO, metric=Metric(name=name))
    assert ranker.metric.reads_explicit == any(column.startswith("reward") for column in ranker.columns)
    assert ranker.metric.reads_implicit == ("policy_logp_chosen" in ranker.columns)
    candidates = Ranker(objective=SIMPO, metric=Metric(name=name, explicit="candidates"))
    assert candidates.metric.reads_candidates == ("rewards_all" in candidates.columns)


@pytest.mark.parametrize("normalise", ["zscore", "none"])
def test_quality_puts_high_rewards_of_little_spread_first(normalise):
    table = scored_table(200)
    rewards = np.array(table.column("rewards_all").to_pylist())
    terms = rewards.mean(axis=1), rewards.var(axis=1)
    if normalise == "zscore":
        terms = [(term - term.mean()) / term.std() for term in terms]
    metric = Metric(name="quality", normalise=normalise)
    assert score(table, metric, fitted_over(table, metric)) == pytest.approx(terms[0] - terms[1])
    some = scored_table(rewards_all=[[1.0, 3.0], None, [2.0]])
    assert np.array_equal(score(some, Metric(name="quality", normalise="none")), [1.0, np.nan, 2.0], equal_nan=True)


@pytest.mark.parametrize("implicit", ["absolute", "signed"])
def test_order_largest_turns_the_implicit_ranking_round(implicit):
    table = scored_table(300)
    smallest, largest = (
        score(table, Metric(name="implicit", implicit=implicit, order=order)) for order in ("smallest", "largest")
    )
    margin = implicit_margin(table, SIMPO)
    assert (largest == (np.abs(margin) if implicit == "absolute" else margin)).all()
    assert (smallest == -largest).all()


def test_difficulty_puts_the_lowest_signed_gap_of_dpo_first():
    table = scored_table(300)
    dpo = Objective(name="dpo", beta=0.1)
    scores = score(table, Metric(name="difficulty", implicit="absolute"), objective=dpo)
    ratios = [
        table.column(f"policy_logp_{side}").to_numpy() - table.column(f"reference_logp_{side}").to_numpy()
        for side in ("chosen", "rejected")
    ]
    assert np.argsort(-scores).tolist() == np.argsort(ratios[0] - ratios[1]).tolist()


@pytest.mark.parametrize("settings", [{}, {"explicit": "absolute", "implicit": "absolute"}, {"explicit": "candidates"}])
def test_bees_add_is_the_sum_of_the_signed_margins_whatever_the_settings(settings):
    table = scored_table(300)
    explicit, implicit = margins_of(table)
    assert (score(table, Metric(name="bees-add", **settings)) == explicit + implicit).all()


def bees_mul(explicit, implicit):
    """The formula of the paper, row by row: M1 = -2, M2 the lowest value with fewer than 30 values above it."""
    scores = []
    highest = [min(v for v in margins if sum(w > v for w in margins) < 30) for margins in (explicit, implicit)]
    for row in zip(explicit, implicit, strict=True):
        shares = [(min(max(m, -2.0), top) + 2.0) / (top + 2.0) for m, top in zip(row, highest, strict=True)]
        both, neither = math.prod(shares), math.prod(1 - share for share in shares)
        scores.append(both / (both + neither) if both + neither else 0.5)
    return scores


def test_bees_mul_is_the_formula_of_the_paper():
    table = scored_table(400, rewards_all=None)
    metric = Metric(name="bees-mul")
    scores = score(table, metric, fitted_over(table, metric))
    assert scores == pytest.approx(bees_mul(*(m.tolist() for m in margins_of(table))), rel=1e-12)
    assert np.unique(scores).size > 200


def test_bees_mul_of_one_certain_yes_and_one_certain_no_is_a_half():
    table = scored_table(3, reward_chosen=[9.0, 9.0, -9.0], reward_rejected=[0.0] * 3,
                         policy_logp_chosen=[-1.0, -90.0, -90.0], policy_logp_rejected=[-90.0, -1.0, -1.0],
                         num_tokens_chosen=[1] * 3, num_tokens_rejected=[1] * 3)  # fmt: skip
    ranges = {"margin_explicit_signed": (-2.0, 3.0), "margin_implicit": (-2.0, 4.0)}
    assert score(table, Metric(name="bees-mul"), Fitted(ranges=ranges)).tolist() == [1.0, 0.5, 0.0]


def test_sigma_gap_is_the_difference_of_two_probabilities():
    table = scored_table(300)
    explicit, implicit = margins_of(table)
    fitted = Fitted(scales={"margin_explicit_signed": 0.5, "margin_implicit": 3.0})
    expected = 1 / (1 + np.exp(-0.5 * explicit)) - 1 / (1 + np.exp(-3.0 * implicit))
    assert np.allclose(score(table, Metric(name="sigma-gap"), fitted), expected, rtol=1e-13, atol=1e-15)


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_swapping_a_pair_negates_its_sigma_gap_and_bees_add(explicit, implicit, scale, other):
    values = {"reward_chosen": [explicit], "reward_rejected": [0.0], "policy_logp_chosen": [implicit],
              "policy_logp_rejected": [0.0], "num_tokens_chosen": [1], "num_tokens_rejected": [1]}  # fmt: skip
    table = scored_table(1, **values)
    fitted = Fitted(scales={"margin_explicit_signed": scale, "margin_implicit": other})
    for name in ("sigma-gap", "bees-add"):
        there, back = (score(pair, Metric(name=name), fitted)[0] for pair in (table, swapped(table)))
        assert back == pytest.approx(-there, abs=1e-15)


def test_every_metric_and_ratio_is_listed_with_its_source():
    text = "\n".join(describe_metrics())
    for name, definition in {**METRICS, **RATIO_METHODS}.items():
        assert f"\n{name}\n" in text
        assert definition.source in text
