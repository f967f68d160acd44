"""Each rule of the select section against its plain reading, row by row."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Metric
from pipeline.errors import DataError, SchemaError
from pipeline.metrics import explicit_margin, implicit_margin
from pipeline.selection.labels import contradicted, swap_sides
from tests.metrics.tables import agreeing_table, scored_table
from tests.selection.sources import (
    EXPLICIT,
    SIMPO,
    best_first,
    kept_ids,
    margins,
    run,
    subset,
    with_columns,
    with_texts,
)

METRICS = [Metric(), EXPLICIT, Metric(normalise="rank"), Metric(weight="auto"), Metric(name="sigma-gap")]


# The score band.


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [
        (1.0, None, {2, 3, 4}),
        (None, 1.0, {0, 1, 2}),
        (0.0, 2.0, {1, 2, 3}),
        (1.0, 1.0, {2}),
        (-9.0, 9.0, set(range(5))),
    ],
)
def test_a_score_band_keeps_what_lies_in_it_bounds_included(low, high, kept):
    table = margins([-1.0, 0.0, 1.0, 2.0, 3.0])
    selection = run(table, min_score=low, max_score=high)
    assert {*selection.positions} == kept
    assert selection.k == len(kept)
    assert selection.excluded["outside_score_band"] == 5 - len(kept)


@settings(max_examples=25)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.integers(-4, 4), st.integers(0, 5), st.data())
def test_a_fraction_of_a_band_is_the_best_of_what_lies_in_it(values, low, width, data):
    table = margins([float(v) for v in values])
    inside = [i for i in best_first(table, values) if low <= values[i] <= low + width]
    fraction = data.draw(st.sampled_from([0.25, 0.5, 1.0]))
    k = math.floor(fraction * len(inside))
    rule = {"min_score": float(low), "max_score": float(low + width), "fraction": fraction}
    if not k:
        with pytest.raises(DataError, match="no row at all"):
            run(table, **rule)
        return
    assert {*run(table, **rule).positions} == {*inside[:k]}


def test_an_empty_band_is_an_error_that_names_its_bounds():
    with pytest.raises(DataError, match=r"select\.min_score 7\.0 and select\.max_score 8\.0"):
        run(margins([1.0, 2.0]), min_score=7.0, max_score=8.0)


def test_k_larger_than_the_band_is_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"select\.k is 3, but only 2 rows"):
        run(margins([1.0, 2.0, 3.0]), min_score=2.0, k=3)


# Labels.


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: f"{m.name}-{m.normalise}-{m.weight}")
@pytest.mark.parametrize("rule", [{"fraction": 0.4}, {"k": 20}, {"min_score": 0.0}])
def test_swapping_labels_equals_selecting_from_a_table_swapped_beforehand(metric, rule):
    table = agreeing_table(150)
    swapped = swap_sides(table, contradicted(table))
    selection, expected = run(table, metric, labels="swap", **rule), run(swapped, metric, **rule)
    assert subset(selection, table).equals(subset(expected, swapped))
    assert selection.fitted.to_dict() == expected.fitted.to_dict()
    assert selection.id_digest == expected.id_digest


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: f"{m.name}-{m.normalise}-{m.weight}")
@pytest.mark.parametrize("rule", [{"fraction": 0.4}, {"k": 20}, {"min_score": 0.0}])
def test_dropping_labels_equals_selecting_from_the_other_rows(metric, rule):
    table = agreeing_table(150)
    left = table.filter(pa.array(~contradicted(table)))
    selection, expected = run(table, metric, labels="drop", **rule), run(left, metric, **rule)
    assert subset(selection, table).equals(subset(expected, left))
    assert selection.fitted.to_dict() == expected.fitted.to_dict()
    assert selection.excluded["contradicted_by_reward"] == 150 - left.num_rows
    assert (selection.num_rows, selection.num_ranked) == (150, left.num_rows)


@pytest.mark.parametrize("rule", [{"fraction": 0.4}, {"k": 7, "labels": "swap"}, {"min_score": 0.5}])
def test_a_condition_equals_selecting_from_the_rows_that_meet_it(rule):
    table = scored_table(300)
    met = table.filter(pc.less(table["reward_rejected"], 0.1))
    expected = run(met, Metric(), **rule)
    found = run(table, Metric(), where="reward_rejected < 0.1", **rule)
    assert kept_ids(found, table) == kept_ids(expected, met)
    assert found.scores.tolist() == expected.scores.tolist()
    assert found.excluded["outside_where"] == table.num_rows - met.num_rows > 0
    assert found.num_ranked == expected.num_ranked


def test_a_condition_on_a_column_that_is_not_there_is_refused():
    with pytest.raises(SchemaError, match=r"select\.where needs \['lang'\]"):
        run(scored_table(10), k=3, where="lang == 'de'")


def test_swapped_rows_come_out_with_their_sides_exchanged_and_a_positive_margin():
    table = agreeing_table(60)
    selection = run(table, Metric(normalise="none"), labels="swap", fraction=1.0)
    kept = subset(selection, table)
    against = contradicted(table)
    assert selection.num_contradicted == against.sum() > 0
    assert min(kept.column("margin_explicit").to_pylist()) >= 0
    for name, other in (("policy_logp_chosen", "policy_logp_rejected"), ("num_tokens_rejected", "num_tokens_chosen")):
        expected = np.where(against, table.column(other).to_numpy(), table.column(name).to_numpy())
        assert kept.column(name).to_numpy().tolist() == expected.tolist()
    implicit = np.where(against, -1, 1) * implicit_margin(table, SIMPO)
    assert np.allclose(kept.column("margin_implicit").to_numpy(), implicit, rtol=1e-12)


@pytest.mark.parametrize("labels", ["drop", "swap"])
def test_labels_are_treated_by_the_reward_although_the_metric_takes_candidates(labels):
    table = agreeing_table(150)
    selection = run(table, Metric(explicit="candidates"), labels=labels, fraction=0.5)
    assert selection.num_contradicted == (explicit_margin(table) < 0).sum()
    kept = subset(selection, table)
    assert (kept.column("reward_chosen").to_numpy() >= kept.column("reward_rejected").to_numpy()).all()


def test_nothing_is_left_where_every_label_is_contradicted_and_dropped():
    with pytest.raises(DataError, match=r"select\.labels"):
        run(margins([-1.0, -2.0]), labels="drop", k=1)


@pytest.mark.parametrize("labels", ["drop", "swap"])
def test_labels_cannot_be_treated_without_rewards(labels):
    table = scored_table(20, reward_chosen=None)
    with pytest.raises(SchemaError, match=f"select.labels {labels} reads reward_chosen, null in all 20 scored rows"):
        run(table, Metric(name="implicit"), labels=labels, k=5)


# Rows of one prompt, and repeated texts.


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([{"fraction": 0.5}, {"k": 5}, {"min_score": -0.2}]))
def test_a_prompt_gives_its_best_rows_and_no_more(seed, cap, rule):
    rng = np.random.default_rng(seed)
    values, prompts = np.round(rng.normal(size=40), 1) + 0.0, [f"p{i}" for i in rng.integers(0, 9, 40)]
    table = with_texts(margins(values.tolist()), prompts, [f"text {i}" for i in range(40)])
    ranked = best_first(table, values)
    if "min_score" in rule:
        ranked = [i for i in ranked if values[i] >= rule["min_score"]]
    left = [i for n, i in enumerate(ranked) if [prompts[j] for j in ranked[:n]].count(prompts[i]) < cap]
    k = {"fraction": len(left) // 2, "k": 5, "min_score": len(left)}[next(iter(rule))]
    selection = run(table, per_prompt=cap, **rule)
    assert {*selection.positions} == {*left[:k]}
    assert selection.excluded["beyond_per_prompt"] == len(ranked) - len(left)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([None, "origin"]))
def test_repeated_texts_give_way_to_the_next_best_rows(seed, group_by):
    rng = np.random.default_rng(seed)
    values, texts = np.round(rng.normal(size=40), 1) + 0.0, [f"Text {i}" for i in rng.integers(0, 25, 40)]
    origins = [str(i) for i in rng.integers(0, 2, 40)]
    table = with_texts(
        margins(values.tolist()), texts, [text.upper() if i % 2 else text for i, text in enumerate(texts)]
    )
    table = with_columns(table, {"origin": origins})
    selection = run(table, deduplicate="exact", fraction=0.3, group_by=group_by)
    kept = {*selection.positions}
    assert len({texts[i] for i in kept}) == len(kept) == selection.k
    ranked = best_first(table, values)
    if group_by is None:
        left = [i for n, i in enumerate(ranked) if texts[i] not in {texts[j] for j in ranked[:n]}]
        assert kept == set(left[:12])


def test_rules_apply_one_after_the_other():
    table = with_texts(agreeing_table(80), [f"p{i % 25}" for i in range(80)], [f"text {i % 50}" for i in range(80)])
    table = with_columns(table, {"origin": ["a", "b"] * 40})
    rule = {"labels": "drop", "max_score": 1.0, "per_prompt": 2, "deduplicate": "exact", "group_by": "origin"}
    selection = run(table, Metric(), fraction=0.5, **rule)
    kept = subset(selection, table)
    assert kept.num_rows == selection.k
    assert max(kept.column("potential").to_pylist()) <= 1.0
    assert min(kept.column("margin_explicit").to_pylist()) >= 0
    assert max(Counter(p[0]["content"] for p in kept.column("prompt").to_pylist()).values()) <= 2
    assert max(Counter(p[0]["content"] for p in kept.column("chosen").to_pylist()).values()) == 1
    assert selection.num_rows == 80


# What cannot be selected.


@pytest.mark.parametrize(
    ("metric", "remedy"),
    [(Metric(), "metric.normalise: none"), (Metric(normalise="robust"), "metric.normalise: none"),
     (Metric(weight="auto"), "no spread"), (Metric(weight="auto", normalise="none"), "rank by one margin")],
)  # fmt: skip
def test_rows_that_all_tie_have_no_spread_and_the_error_says_what_to_do(metric, remedy):
    with pytest.raises(DataError, match="margin") as error:
        run(margins([1.0] * 10), metric, k=3)
    assert remedy in str(error.value)


def test_rows_that_all_tie_are_ranked_by_id_where_nothing_is_divided_by():
    table = margins([1.0] * 10)
    for metric in (EXPLICIT, Metric(normalise="none", weight=0.0), Metric(normalise="rank", weight=0.0)):
        assert kept_ids(run(table, metric, k=3), table) == set(sorted(table.column("id").to_pylist())[:3])


@pytest.mark.parametrize("metric", [EXPLICIT, Metric(normalise="none"), Metric(normalise="rank")])
def test_one_row_is_kept_where_no_spread_is_needed(metric):
    table = margins([1.0])
    assert run(table, metric, fraction=1.0).positions.tolist() == [0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_column_that_is_finite_nowhere_is_refused_with_a_count(bad):
    for metric in (Metric(), EXPLICIT, Metric(normalise="rank"), Metric(name="bees-add"), Metric(weight="auto")):
        with pytest.raises(DataError, match=r"none of 4 scored rows can be ranked: .*margin_explicit_not_finite': 4"):
            run(margins([bad] * 4), metric, k=1)


def test_a_negative_score_of_minus_zero_is_inside_a_band_from_zero():
    table = scored_table(reward_chosen=[0.0, 1.0], reward_rejected=[0.0, 1.0])
    assert run(table, min_score=0.0, max_score=0.0).k == 2


def test_a_prompt_that_loses_a_row_to_the_band_gives_its_next_one():
    table = with_texts(margins([3.0, 2.0, 1.0, 0.5]), ["p", "p", "p", "q"], "abcd")
    assert run(table, per_prompt=1, max_score=2.5, fraction=1.0).positions.tolist() == [1, 3]
    assert run(table, per_prompt=1, max_score=2.5, fraction=1.0).excluded["beyond_per_prompt"] == 1


def test_a_group_that_repeats_leave_short_gives_what_it_has_unless_a_number_is_asked_for():
    table = with_texts(margins([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]), ["p"] * 6, ["a", "a", "a", "b", "c", "d"])
    table = with_columns(table, {"origin": ["x"] * 3 + ["y"] * 3})
    selection = run(table, deduplicate="exact", group_by="origin", fraction=0.7)
    assert selection.positions.tolist() == [0, 3, 4]
    assert {name: (cut.k, cut.num_candidates) for name, cut in selection.cuts.items()} == {"x": (1, 1), "y": (2, 3)}
    with pytest.raises(DataError, match=r"2 rows of group x are wanted, but without repeated texts only 1 are left"):
        run(table, deduplicate="exact", group_by="origin", k=4)
    with pytest.raises(DataError, match="5 rows are wanted, but without repeated texts only 4 are left"):
        run(table, deduplicate="exact", k=5)
