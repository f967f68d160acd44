"""What metrics take from the whole set, against plain numpy on the table."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Metric, Select
from pipeline.errors import DataError, SchemaError
from pipeline.metrics import explicit_margin, implicit_margin
from pipeline.metrics.ids import id_hashes
from pipeline.metrics.ranks import average_ranks
from pipeline.metrics.ratio import RATIO_METHODS, RatioSample, automatic_ratio
from pipeline.selection import fit, select
from pipeline.selection.fit import _LABEL_SMOOTHING, drawn
from tests.metrics.tables import agreeing_table, on_policy_table, scored_table
from tests.selection.sources import SIMPO, found_in, kept_ids, margins, source_of, without

ROBUST = Metric(normalise="robust")


def fitted_to(table, metric):
    return found_in(table, metric).selection.fitted


def margins_of(table):
    return explicit_margin(table), implicit_margin(table, SIMPO)


def scores_of(table, metric):
    return found_in(table, metric).ranking.scores


def test_z_scores_take_mean_and_population_deviation():
    table = scored_table(1000)
    explicit, implicit = margins_of(table)
    normalisers = fitted_to(table, Metric()).normalisers
    assert list(normalisers) == ["margin_explicit", "margin_implicit_abs"]
    for values, scale in zip((explicit, np.abs(implicit)), normalisers.values(), strict=True):
        assert scale.center == pytest.approx(values.mean(), rel=1e-12)
        assert scale.spread == pytest.approx(values.std(), rel=1e-12)


@pytest.mark.parametrize("num_rows", [999, 1000])
@pytest.mark.parametrize("implicit", ["absolute", "signed"])
@pytest.mark.parametrize("make", [scored_table, on_policy_table])
def test_robust_scales_are_median_and_mad_of_the_table(num_rows, implicit, make):
    table = make(num_rows)
    explicit, margin = margins_of(table)
    normalisers = fitted_to(table, Metric(normalise="robust", implicit=implicit)).normalisers
    for values, scale in zip(
        (explicit, np.abs(margin) if implicit == "absolute" else margin), normalisers.values(), strict=True
    ):
        median = np.median(values)
        assert scale.center == pytest.approx(median, rel=1e-14)
        assert scale.spread == pytest.approx(1.482602218505602 * np.median(np.abs(values - median)), rel=1e-12)


@settings(max_examples=25)
@given(
    st.lists(st.integers(-3, 3), min_size=4, max_size=40).filter(lambda v: 2 * v.count(sorted(v)[len(v) // 2]) < len(v))
)
def test_robust_scales_of_tied_rows_are_median_and_mad(rewards):
    table = scored_table(reward_chosen=[float(r) for r in rewards], reward_rejected=[0.0] * len(rewards))
    scale = fitted_to(table, ROBUST).normalisers["margin_explicit"]
    median = np.median(rewards)
    assert scale.center == median
    assert scale.spread == pytest.approx(1.482602218505602 * np.median(np.abs(np.array(rewards) - median)), rel=1e-15)


def test_the_median_of_the_largest_doubles_does_not_overflow():
    scale = fitted_to(margins([1.7e308, 1.6e308, 1.5e308, 1.4e308]), Metric(normalise="robust", weight=0)).normalisers
    assert scale["margin_explicit"].center == pytest.approx(1.55e308)


@pytest.mark.parametrize("make", [scored_table, on_policy_table])
def test_ranks_are_exact_average_ranks(make):
    table = make(1000)
    explicit, implicit = margins_of(table)
    ranks = [(average_ranks(values) + 0.5) / 1000 for values in (explicit, np.abs(implicit))]
    scores = scores_of(table, Metric(normalise="rank", weight=2.0))
    assert scores == pytest.approx(ranks[0] - 2.0 * ranks[1], abs=1e-15)


def test_bees_ranges_end_at_the_thirtieth_largest_margin():
    table = agreeing_table(500)
    explicit, implicit = margins_of(table)
    ranges = fitted_to(table, Metric(name="bees-mul")).ranges
    assert ranges["margin_explicit_signed"] == (-2.0, np.sort(explicit)[-30])
    assert ranges["margin_implicit"] == (-2.0, np.sort(implicit)[-30])


def test_bees_range_of_fewer_rows_than_thirty_ends_at_the_lowest():
    sure = {"policy_logp_chosen": [-1.0] * 3, "policy_logp_rejected": [-900.0] * 3}
    table = scored_table(reward_chosen=[5.0, 3.0, 4.0], reward_rejected=[0.0] * 3, **sure)
    assert fitted_to(table, Metric(name="bees-mul")).ranges["margin_explicit_signed"] == (-2.0, 3.0)


def test_bees_mul_without_a_range_is_refused():
    table = scored_table(reward_chosen=[-5.0] * 40, reward_rejected=[0.0] * 40)
    with pytest.raises(DataError, match=r"bees-mul clips margin_explicit_signed to -2\.0 .* which is -5\.0"):
        fitted_to(table, Metric(name="bees-mul"))


def test_sigma_gap_scales_are_the_likeliest_of_a_fine_grid():
    table = agreeing_table(2000)
    scales = fitted_to(table, Metric(name="sigma-gap")).scales
    for name, margin in zip(("margin_explicit_signed", "margin_implicit"), margins_of(table), strict=True):
        grid = np.geomspace(0.01, 100, 4000)
        right, wrong = (np.array([-np.logaddexp(0, -sign * a * margin).mean() for a in grid]) for sign in (1.0, -1.0))
        best = grid[np.argmax((1 - _LABEL_SMOOTHING) * right + _LABEL_SMOOTHING * wrong)]
        assert scales[name] == pytest.approx(best, rel=3e-3)


def test_sigma_gap_of_margins_that_labels_were_drawn_from_is_still_defined():
    table = on_policy_table(500)
    flipped = agreeing_table(
        500, reward_chosen=table.column("reward_chosen"), reward_rejected=table.column("reward_rejected")
    )
    assert explicit_margin(flipped).min() > 0
    assert 0 < fitted_to(flipped, Metric(name="sigma-gap")).scales["margin_explicit_signed"] < math.inf


def test_sigma_gap_of_margins_against_the_labels_is_refused():
    table = agreeing_table(300)
    with pytest.raises(DataError, match=r"the explicit margin confirms the label in .* against the labels"):
        fitted_to(agreeing_table(300, reward_chosen=table.column("reward_rejected"),
                                 reward_rejected=table.column("reward_chosen")), Metric(name="sigma-gap"))  # fmt: skip


def sample_of(table, implicit="absolute"):
    explicit, margin = margins_of(table)
    return RatioSample(
        explicit=explicit,
        implicit=np.abs(margin) if implicit == "absolute" else margin,
        explicit_signed=explicit,
        implicit_signed=margin,
    )


@pytest.mark.parametrize("ratio", RATIO_METHODS)
@pytest.mark.parametrize("normalise", ["zscore", "robust", "none"])
@pytest.mark.parametrize("implicit", ["absolute", "signed"])
def test_an_automatic_weight_ranks_by_the_ratio_between_raw_margins(ratio, normalise, implicit):
    """Whatever the margins are normalised by, rows rank by explicit - w * implicit with w in raw units."""
    table = agreeing_table(800)
    sample = sample_of(table, implicit)
    raw = sample.explicit - automatic_ratio(ratio, sample) * sample.implicit
    metric = Metric(weight="auto", ratio=ratio, normalise=normalise, implicit=implicit)
    scores = scores_of(table, metric)
    slope, offset = np.polyfit(raw, scores, 1)
    assert slope > 0
    assert np.allclose(scores, slope * raw + offset, rtol=0, atol=1e-9)


def test_the_raw_automatic_weight_is_the_ratio_itself():
    table = agreeing_table(800)
    for ratio in RATIO_METHODS:
        weight = fitted_to(table, Metric(weight="auto", ratio=ratio, normalise="none")).weight
        assert weight == pytest.approx(automatic_ratio(ratio, sample_of(table)), rel=1e-12)


def test_the_ratio_of_deviations_is_a_weight_of_exactly_one_between_z_scores():
    table = on_policy_table(1001)
    automatic = Metric(weight="auto", ratio="std")
    assert fitted_to(table, automatic).weight == 1.0
    assert (scores_of(table, automatic) == scores_of(table, Metric(weight=1.0))).all()
    kept = [kept_ids(select(source_of(table), SIMPO, m, Select(k=300)), table) for m in (automatic, Metric(weight=1.0))]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("normalise", ["zscore", "robust", "none"])
def test_decorrelation_leaves_the_potential_uncorrelated_with_the_implicit_term(normalise):
    table = agreeing_table(3000)
    implicit = implicit_margin(table, SIMPO)
    metric = Metric(weight="auto", ratio="decorrelation", normalise=normalise, implicit="signed")
    assert np.corrcoef(explicit_margin(table), implicit)[0, 1] > 0.1
    assert abs(np.corrcoef(scores_of(table, metric), implicit)[0, 1]) < 1e-12


def test_a_weight_from_a_drawn_sample_is_near_that_of_all_rows(monkeypatch):
    monkeypatch.setattr(fit, "DRAWN_ROWS", 5000)
    table = agreeing_table(10_000)
    for ratio in RATIO_METHODS:
        weight = fitted_to(table, Metric(weight="auto", ratio=ratio, normalise="none", implicit="signed")).weight
        assert weight == pytest.approx(automatic_ratio(ratio, sample_of(table, "signed")), rel=0.25), ratio


def test_an_automatic_weight_without_spread_is_refused():
    table = scored_table(30, reward_chosen=[1.0] * 30, reward_rejected=[0.0] * 30)
    for ratio in ("std", "whitening"):
        with pytest.raises(DataError, match=r"margin_explicit has no spread|explicit margin is 1\.0 in all 30 rows"):
            fitted_to(table, Metric(weight="auto", ratio=ratio, normalise="none"))


def test_a_mad_of_zero_is_refused_although_the_deviation_is_not():
    table = scored_table(reward_chosen=[1.0] * 9 + [2.0], reward_rejected=[0.0] * 10)
    with pytest.raises(DataError, match=r"margin_explicit has no spread .*center 1\.0, spread 0\.0, 10 ranked rows"):
        fitted_to(table, ROBUST)


def test_rows_that_cannot_be_ranked_move_no_statistic():
    good = agreeing_table(60)
    rewards = good.column("reward_chosen").to_pylist()
    logps = good.column("policy_logp_rejected").to_pylist()
    rewards[5], logps[40] = math.nan, None
    bad = agreeing_table(60, reward_chosen=rewards, policy_logp_rejected=logps)
    left = without(bad, [5, 40])
    for metric in (Metric(), ROBUST, Metric(normalise="rank"), Metric(name="bees-mul"), Metric(name="sigma-gap"),
                   Metric(weight="auto"), Metric(weight="auto", ratio="std", normalise="robust")):  # fmt: skip
        assert fitted_to(bad, metric).to_dict() == fitted_to(left, metric).to_dict()
    kept = ~np.isin(np.arange(60), [5, 40])
    ranks = [scores_of(table, Metric(normalise="rank")) for table in (bad, left)]
    assert (ranks[0][kept] == ranks[1]).all()


@pytest.mark.parametrize("metric", [Metric(explicit="candidates", weight="auto"), Metric(explicit="candidates")])
def test_a_model_that_was_not_run_is_named_where_the_fit_needs_it(metric):
    table = scored_table(20, rewards_all=None)
    with pytest.raises(SchemaError, match=r"rewards_all, null in all 20 scored rows"):
        fitted_to(table, metric)


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=80), st.integers(1, 90), st.randoms(use_true_random=False)
)  # ids may repeat
def test_drawn_rows_are_the_same_for_any_order_and_as_many_as_there_is_room_for(ids, room, random):
    def drawn_of(names):
        rows = drawn(id_hashes(pa.array(map(str, names), pa.string())), np.array([name % 5 > 0 for name in names]))
        return sorted(name for name, taken in zip(names, rows, strict=True) if taken)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "DRAWN_ROWS", room)
        found = drawn_of(ids)
        assert drawn_of(random.sample(ids, len(ids))) == found
    possible = [id_ for id_ in ids if id_ % 5]
    assert {id_: found.count(id_) for id_ in found} == {id_: possible.count(id_) for id_ in found}
    assert min(room, len(possible)) <= len(found) < room + max(map(ids.count, ids))


def test_every_row_is_as_likely_to_be_drawn(monkeypatch):
    monkeypatch.setattr(fit, "DRAWN_ROWS", 4000)
    rows = drawn(id_hashes(pa.array(map(str, range(20_000)))), np.ones(20_000, dtype=np.bool_))
    counts = rows.reshape(10, -1).sum(axis=1)
    assert counts.sum() == 4000
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400 * 0.8)
