"""Length held fast: the residual margin as the metric takes it, the rules on lengths, and what the report says."""

import json

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Metric, Select
from pipeline.errors import DataError, SchemaError
from pipeline.report import report_page
from pipeline.selection import render, summarise
from tests.metrics.tables import agreeing_table, scored_table, swapped
from tests.selection.sources import CountedSource, found_in, kept_ids, run, source_of, subset, without
from tests.selection.test_former import applied, manifest_of

LINE = Metric(name="explicit", length="residual")
CURVE = Metric(name="explicit", length="residual_monotone")
KINDS = pytest.mark.parametrize("metric", [LINE, CURVE], ids=lambda m: m.length)


def biased_table(num_rows=400, *, bias=0.05, curved=False):
    """Pairs of a reward that also pays for length; what the quality alone would give for a margin; and length gaps."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(5, 300, (2, num_rows))
    quality = rng.normal(size=(2, num_rows))
    gap = (tokens[0] - tokens[1]).astype(float)
    paid = 5 * np.tanh(gap / 20) if curved else bias * gap
    table = scored_table(
        reward_chosen=quality[0] + paid,
        reward_rejected=quality[1],
        num_tokens_chosen=tokens[0],
        num_tokens_rejected=tokens[1],
    )
    return table, quality[0] - quality[1], gap


def test_what_is_left_of_the_margin_is_the_quality():
    table, quality, gap = biased_table(20_000)
    raw, found = found_in(table, Metric(name="explicit")), found_in(table, LINE)
    assert np.corrcoef(raw.ranking.scores, quality)[0, 1] < 0.25
    assert np.corrcoef(found.ranking.scores, quality)[0, 1] > 0.999
    margin = np.array(table["reward_chosen"]) - np.array(table["reward_rejected"])
    [slope], *_ = np.linalg.lstsq(gap[:, None], margin)
    assert found.ranking.scores == pytest.approx(margin - slope * gap, abs=1e-9)


def test_a_curve_takes_out_what_a_line_cannot():
    table, quality, _ = biased_table(20_000, curved=True)
    line, curve = (np.corrcoef(found_in(table, m).ranking.scores, quality)[0, 1] for m in (LINE, CURVE))
    assert curve > 0.99 > 0.8 > line


@KINDS
@pytest.mark.parametrize("name", ["potential", "bees-add", "sigma-gap"])
def test_every_metric_takes_the_residual_for_the_explicit_margin(metric, name):
    """It ranks as it would if the residual were the reward."""
    table = agreeing_table(300)
    residual = found_in(table, metric).ranking.scores
    rewards = {"reward_chosen": residual, "reward_rejected": np.zeros(300)}
    given = table.drop_columns([*rewards])
    for column, values in rewards.items():
        given = given.append_column(column, pa.array(values))
    chosen = Metric(name=name, length=metric.length)
    assert found_in(table, chosen).ranking.scores.tolist() == found_in(given, Metric(name=name)).ranking.scores.tolist()


@KINDS
def test_order_partition_and_turned_pairs_change_nothing_but_signs(metric):
    table = agreeing_table(200)
    whole = found_in(table, metric)
    order = np.random.default_rng(0).permutation(200)
    shuffled = found_in(table.take(pa.array(order)), metric)
    assert shuffled.ranking.scores.tolist() == whole.ranking.scores[order].tolist()
    assert found_in(swapped(table), metric).ranking.scores.tolist() == (-whole.ranking.scores).tolist()
    by = {"reward_chosen": 64.0, "reward_rejected": 64.0, "num_tokens_chosen": 7, "num_tokens_rejected": 7}
    shifted = table.drop_columns([*by])
    for name, amount in by.items():
        shifted = shifted.append_column(name, pa.array(np.array(table[name]) + amount))
    assert found_in(shifted, metric).ranking.scores == pytest.approx(whole.ranking.scores, abs=1e-9)


@KINDS
def test_the_subset_holds_the_residual_and_a_former_selection_applies_its_fit(metric):
    table, later = agreeing_table(200), agreeing_table(80, seed=1)
    former = run(table, metric, fraction=0.4)
    rows = subset(former, table)
    assert rows["margin_explicit"].to_pylist() == rows["potential"].to_pylist() == former.scores.tolist()
    assert kept_ids(applied(former, table, metric).selection, table) == kept_ids(former, table)
    found = applied(json.loads(json.dumps(manifest_of(former))), later, metric).selection
    gaps = (np.array(later["num_tokens_chosen"]) - np.array(later["num_tokens_rejected"])).astype(float)
    margin = np.array(later["reward_chosen"]) - np.array(later["reward_rejected"])
    residual = margin - former.fitted.length.of(gaps)
    assert found.positions.tolist() == np.flatnonzero(residual >= former.cuts[None].threshold).tolist()


@pytest.mark.parametrize(
    ("metric", "rule"), [(LINE, {}), (CURVE, {}), (Metric(name="explicit"), {"max_length_ratio": 1e9}),
                         (LINE, {"max_length_gap": 10**6, "max_length_ratio": 1e9})],
)  # fmt: skip
def test_rows_without_token_counts_are_left_out_and_counted(metric, rule):
    table = scored_table(num_tokens_chosen=[5, None, 7, 0, 9], num_tokens_rejected=[3, 4, None, 8, 10])
    selection = run(table, metric, fraction=1.0, **rule)
    assert selection.excluded["length_not_known"] == 3
    assert {*selection.positions} == {0, 4}
    assert selection.scores.tolist() == run(without(table, [1, 2, 3]), metric, fraction=1.0, **rule).scores.tolist()


@pytest.mark.parametrize(("metric", "rule"), [(LINE, {}), (Metric(name="explicit"), {"max_length_gap": 3})])
def test_a_set_without_token_counts_is_refused_with_the_remedy(metric, rule):
    empty = scored_table(reward_chosen=[1.0, 2.0], num_tokens_chosen=None, num_tokens_rejected=None)
    with pytest.raises(SchemaError, match=r"null in all 2 scored rows.*add a `policy` section.*leave out"):
        run(empty, metric, k=1, **rule)
    with pytest.raises(SchemaError, match="num_tokens_chosen"):
        run(empty.drop_columns(["num_tokens_chosen"]), metric, k=1, **rule)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({"max_length_ratio": 2.0}, {0, 1, 2, 4}),
        ({"max_length_gap": 10}, {0, 1, 3}),
        ({"max_length_gap": 10, "max_length_ratio": 2.0}, {0, 1}),
        ({"max_length_gap": 0}, {0}),
        ({"max_length_ratio": 1.0}, {0}),
    ],
)
def test_rules_on_lengths_keep_their_bounds_and_count_the_rest(rule, kept):
    table = scored_table(num_tokens_chosen=[10, 10, 40, 5, 100], num_tokens_rejected=[10, 20, 20, 15, 50])
    selection = run(table, fraction=1.0, **rule)
    assert {*selection.positions} == kept
    assert selection.excluded["outside_length_bounds"] == 5 - len(kept)
    everything = run(table, fraction=1.0)
    assert selection.fitted.to_dict() == everything.fitted.to_dict()
    assert kept_ids(applied(selection, table, **rule).selection, table) == kept_ids(selection, table)
    assert "max_length" in "".join(Select(k=1, **rule).fingerprint())
    assert "max_length" not in "".join(Select(k=1).fingerprint())


def test_bounds_that_no_pair_keeps_are_an_error():
    with pytest.raises(DataError, match="no row at all"):
        run(scored_table(num_tokens_chosen=[1, 2], num_tokens_rejected=[9, 9]), fraction=1.0, max_length_gap=3)


@KINDS
def test_the_report_shows_length_before_and_after(metric):
    table, _, gap = biased_table()
    found = found_in(table, metric)
    report = summarise(found, source_of(table))
    correlation = report["lengths"]["all"]["correlation"]
    margin = np.array(table["reward_chosen"]) - np.array(table["reward_rejected"])
    assert correlation["margin_explicit"] == pytest.approx(np.corrcoef(margin, gap)[0, 1], abs=1e-5)
    assert abs(correlation["margin_explicit_residual"]) < 0.1 < 0.9 < correlation["margin_explicit"]
    text = render(report)
    assert f"length {metric.length}" in text
    for line in ("chosen is longer", "correlation of reward margin and length gap", "without what length explains"):
        assert line in text
    page = report_page(report, {"version": "0", "made_from": {}, "scored": "s", "fingerprint": "f", "scored_by": {}})
    assert "correlation of reward margin without length and length gap" in page
    assert f"metric.length: {metric.length}</code> took out" in page
    plain = summarise(found_in(table, Metric(name="explicit")), CountedSource(table))
    assert [*plain["lengths"]["all"]["correlation"]] == ["margin_explicit", "margin_implicit"]
    assert "length" not in plain["selection"]["metric"] | plain["selection"]["fitted"]


@KINDS
def test_length_is_taken_out_of_what_several_rewards_are_combined_to(metric):
    table, quality, _ = biased_table(2000)
    both = table.rename_columns([name.replace("reward_", "reward_a_") for name in table.column_names])
    both = both.append_column("reward_b_chosen", pa.array(2 * np.array(table["reward_chosen"])))
    both = both.append_column("reward_b_rejected", pa.array(2 * np.array(table["reward_rejected"])))
    found = found_in(both, metric)
    assert np.corrcoef(found.ranking.scores, quality)[0, 1] > 0.98
    one = found_in(table, metric).ranking.scores
    assert found.ranking.scores * np.std(one) == pytest.approx(one * np.std(found.ranking.scores), abs=1e-6)
    correlation = summarise(found, source_of(both))["lengths"]["all"]["correlation"]
    assert abs(correlation["margin_explicit_residual"]) < 0.05 < 0.9 < correlation["margin_explicit"]
