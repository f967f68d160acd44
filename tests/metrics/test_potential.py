import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline.metrics.fitted import Fitted

from pipeline.config import Metric, Objective
from pipeline.metrics import METRICS, Ranker, explicit_margin, implicit_margin
from pipeline.metrics.listing import describe_metrics
from pipeline.metrics.normalise import Ranks, Scale, rank_buckets
from pipeline.metrics.ratio import RATIO_METHODS
from pipeline.selection import TableSource, Threads
from pipeline.selection.fit import fit
from pipeline.selection.source import no_positions, parts_of
from tests.metrics.tables import agreeing_table, scored_table, swapped

RAW = Metric(normalise="none", weight=2.5)
NOTHING = Fitted()


def fitted_over(table, ranker):
    parts = parts_of(TableSource(table=table), no_positions(), "keep", 1)
    return fit(Threads(num_threads=1), parts, [ranker])[0].fitted


def margins_of(table):
    return explicit_margin(table), implicit_margin(table, Objective())


def score(table, metric, fitted=NOTHING, **ranker):
    return Ranker(objective=Objective(), metric=metric, **ranker).score(table, fitted)


def test_raw_potential_is_target_minus_weighted_present_margin():
    table = scored_table(100)
    scores = Ranker(objective=Objective(), metric=RAW).score(table, NOTHING)
    expected = explicit_margin(table) - 2.5 * np.abs(implicit_margin(table, Objective()))
    assert (scores == expected).all()


def test_z_scored_potential_subtracts_standard_scores():
    table = scored_table(1000)
    ranker = Ranker(objective=Objective(), metric=Metric(weight=2.5))
    explicit, implicit = explicit_margin(table), np.abs(implicit_margin(table, Objective()))
    z = [(x - x.mean()) / x.std() for x in (explicit, implicit)]
    assert np.allclose(ranker.score(table, fitted_over(table, ranker)), z[0] - 2.5 * z[1], rtol=1e-12, atol=1e-12)


def test_signed_implicit_margin_is_an_option():
    table = scored_table(100)
    scores = Ranker(objective=Objective(), metric=RAW.model_copy(update={"implicit": "signed"})).score(table, NOTHING)
    assert (scores == explicit_margin(table) - 2.5 * implicit_margin(table, Objective())).all()


def test_a_pair_the_reward_contradicts_ranks_below_its_swap():
    table = scored_table(200)
    ranker = Ranker(objective=Objective(), metric=RAW)
    contradicted = explicit_margin(table) < 0
    assert (ranker.score(table, NOTHING) < ranker.score(swapped(table), NOTHING))[contradicted].all()


def test_weight_zero_reads_no_implicit_column():
    ranker = Ranker(objective=Objective(), metric=Metric(weight=0.0, normalise="none"))
    assert ranker.columns == ("reward_chosen", "reward_rejected")
    assert (ranker.score(scored_table(9), NOTHING) == explicit_margin(scored_table(9))).all()


def test_implicit_metric_puts_the_least_separated_pair_first():
    table = scored_table(300)
    scores = Ranker(objective=Objective(), metric=Metric(name="implicit")).score(table, NOTHING)
    assert np.argmax(scores) == np.argmin(np.abs(implicit_margin(table, Objective())))


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
        counted = {name: np.unique(rank_buckets(v), return_counts=True) for name, v in terms.items()}
        normalisers = {name: Ranks(buckets=b, counts=c) for name, (b, c) in counted.items()}
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


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("explicit", ["signed", "absolute", "candidates"])
@pytest.mark.parametrize("objective", ["simpo", "dpo"])
def test_declared_columns_are_all_that_a_score_needs(name, explicit, objective):
    table = agreeing_table(64)
    ranker = Ranker(objective=Objective(name=objective), metric=Metric(name=name, explicit=explicit))
    fitted = fitted_over(table, ranker)
    assert (ranker.score(table.select(ranker.columns), fitted) == ranker.score(table, fitted)).all()


@pytest.mark.parametrize("name", METRICS)
def test_scores_do_not_depend_on_blocks_or_order(name):
    table = agreeing_table(500)
    ranker = Ranker(objective=Objective(), metric=Metric(name=name))
    fitted = fitted_over(table, ranker)
    whole = ranker.score(table, fitted)
    parts = [ranker.score(table.slice(i, 77), fitted) for i in range(0, 500, 77)]
    assert (np.concatenate(parts) == whole).all()
    order = np.random.default_rng(1).permutation(500)
    assert (ranker.score(table.take(order), fitted) == whole[order]).all()


def test_random_scores_depend_on_id_and_seed_alone():
    table = scored_table(2000)
    first, second = (
        Ranker(objective=Objective(), metric=Metric(name="random"), seed=s).score(table, NOTHING) for s in (1, 2)
    )
    other_rewards = scored_table(2000, id=table.column("id"), seed=5)
    assert (
        Ranker(objective=Objective(), metric=Metric(name="random"), seed=1).score(other_rewards, NOTHING) == first
    ).all()
    assert (first != second).all()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert 0 <= first.min() < 0.01 < 0.99 < first.max() < 1


def test_negative_zero_is_not_told_from_zero():
    table = scored_table(reward_chosen=[0.0, -0.0], reward_rejected=[0.0, 0.0])
    scores = Ranker(objective=Objective(), metric=Metric(name="explicit")).score(table, NOTHING)
    assert not np.signbit(scores).any()


def test_an_infinite_term_gives_no_score():
    table = scored_table(reward_chosen=[np.inf, 1e308, 1.0], reward_rejected=[0.0, -1e308, 0.0])
    scores = Ranker(objective=Objective(), metric=Metric(name="explicit")).score(table, NOTHING)
    assert np.array_equal(scores, [np.nan, np.nan, 1.0], equal_nan=True)


@pytest.mark.parametrize("name", METRICS)
def test_config_and_formulas_agree_on_which_margins_a_metric_reads(name):
    ranker = Ranker(objective=Objective(), metric=Metric(name=name))
    assert ranker.metric.reads_explicit == ("reward_chosen" in ranker.columns)
    assert ranker.metric.reads_implicit == ("policy_logp_chosen" in ranker.columns)
    candidates = Ranker(objective=Objective(), metric=Metric(name=name, explicit="candidates"))
    assert candidates.metric.reads_candidates == ("rewards_all" in candidates.columns)


@pytest.mark.parametrize("implicit", ["absolute", "signed"])
def test_order_largest_turns_the_implicit_ranking_round(implicit):
    table = scored_table(300)
    smallest, largest = (
        score(table, Metric(name="implicit", implicit=implicit, order=order)) for order in ("smallest", "largest")
    )
    margin = implicit_margin(table, Objective())
    assert (largest == (np.abs(margin) if implicit == "absolute" else margin)).all()
    assert (smallest == -largest).all()


def test_difficulty_puts_the_lowest_signed_gap_of_dpo_first():
    table = scored_table(300)
    dpo = Objective(name="dpo", beta=0.1)
    scores = Ranker(objective=dpo, metric=Metric(name="difficulty", implicit="absolute")).score(table, NOTHING)
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
    ranker = Ranker(objective=Objective(), metric=Metric(name="bees-mul"))
    scores = ranker.score(table, fitted_over(table, ranker))
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


def test_margins_can_stand_in_columns_of_their_own():
    table = scored_table(100)
    explicit, implicit = margins_of(table)
    own = table.append_column("margin_explicit", [explicit]).append_column("margin_implicit", [implicit])
    ranker = Ranker(objective=None, metric=RAW)
    assert ranker.columns == ("margin_explicit", "margin_implicit")
    narrow = own.select(["margin_explicit", "margin_implicit"])
    assert (ranker.score(narrow, NOTHING) == score(table, RAW)).all()
    absolute = Ranker(objective=None, metric=RAW.model_copy(update={"explicit": "absolute"}))
    assert (absolute.score(narrow, NOTHING) == np.abs(explicit) - 2.5 * np.abs(implicit)).all()


def test_every_metric_and_ratio_is_listed_with_its_source():
    text = "\n".join(describe_metrics())
    for name, definition in {**METRICS, **RATIO_METHODS}.items():
        assert f"\n{name}\n" in text
        assert definition.source in text
