"""Each rule of the select section against its plain reading, row by row."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import schema
from pipeline.config import Metric, Objective, Select
from pipeline.errors import DataError, SchemaError
from pipeline.metrics import explicit_margin, implicit_margin
from pipeline.selection import select, source
from pipeline.selection.labels import contradicted, swap_sides
from tests.metrics.tables import agreeing_table, scored_table
from tests.selection.sources import CountedSource, kept_ids, source_of

SIMPO = Objective()
EXPLICIT = Metric(name="explicit")
METRICS = [Metric(), EXPLICIT, Metric(normalise="rank"), Metric(weight="auto"), Metric(name="sigma-gap")]


def run(table, metric=EXPLICIT, **rule):
    return select(CountedSource(table), SIMPO, metric, Select(**rule))


def margins(values):
    """Rows of these explicit margins, numbered."""
    table = scored_table(reward_chosen=list(values), reward_rejected=[0.0] * len(values))
    return table.append_column("row", pa.array(range(len(values))))


def _with(table, columns):
    for name, values in columns.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    return table


def rows_kept(table, selection):
    return set(selection.apply(table).column("row").to_pylist())


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
    assert rows_kept(table, selection) == kept
    assert selection.k == len(kept)
    assert selection.excluded["outside_score_band"] == 5 - len(kept)


@settings(max_examples=25)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.integers(-4, 4), st.integers(0, 5), st.data())
def test_a_fraction_of_a_band_is_the_best_of_what_lies_in_it(values, low, width, data):
    table = margins([float(v) for v in values])
    inside = [
        (-v, id_) for v, id_ in zip(values, table.column("id").to_pylist(), strict=True) if low <= v <= low + width
    ]
    fraction = data.draw(st.sampled_from([0.25, 0.5, 1.0]))
    k = math.floor(fraction * len(inside))
    rule = {"min_score": float(low), "max_score": float(low + width), "fraction": fraction}
    if not k:
        with pytest.raises(DataError, match="no row at all"):
            run(table, **rule)
        return
    selection = run(table, **rule)
    assert kept_ids(selection, table) == {id_ for _, id_ in sorted(inside)[:k]}


def test_the_band_of_a_selection_applies_to_rows_that_come_later():
    table = margins([0.0, 1.0, 2.0])
    selection = run(table, min_score=0.5, max_score=2.0)
    assert rows_kept(margins([0.4, 0.6, 5.0]), selection) == {1}


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
    assert selection.apply(table).equals(expected.apply(swapped))
    assert selection.fitted.to_dict() == expected.fitted.to_dict()
    assert selection.id_digest == expected.id_digest


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: f"{m.name}-{m.normalise}-{m.weight}")
@pytest.mark.parametrize("rule", [{"fraction": 0.4}, {"k": 20}, {"min_score": 0.0}])
def test_dropping_labels_equals_selecting_from_the_other_rows(metric, rule):
    table = agreeing_table(150)
    left = table.filter(pa.array(~contradicted(table)))
    selection, expected = run(table, metric, labels="drop", **rule), run(left, metric, **rule)
    assert selection.apply(table).equals(expected.apply(left))
    assert selection.fitted.to_dict() == expected.fitted.to_dict()
    assert selection.excluded["contradicted_by_reward"] == 150 - left.num_rows
    assert (selection.num_rows, selection.num_ranked) == (150, left.num_rows)


def test_swapped_rows_come_out_with_their_sides_exchanged_and_a_positive_margin():
    table = agreeing_table(60)
    selection = run(table, Metric(normalise="none"), labels="swap", fraction=1.0)
    subset = selection.apply(table)
    against = contradicted(table)
    assert selection.num_contradicted == against.sum() > 0
    assert min(subset.column("margin_explicit").to_pylist()) >= 0
    for name, other in (("policy_logp_chosen", "policy_logp_rejected"), ("num_tokens_rejected", "num_tokens_chosen")):
        expected = np.where(against, table.column(other).to_numpy(), table.column(name).to_numpy())
        assert subset.column(name).to_numpy().tolist() == expected.tolist()
    implicit = np.where(against, -1, 1) * implicit_margin(table, SIMPO)
    assert np.allclose(subset.column("margin_implicit").to_numpy(), implicit, rtol=1e-12)


@pytest.mark.parametrize("labels", ["drop", "swap"])
def test_labels_are_treated_by_the_reward_although_the_metric_takes_candidates(labels):
    table = agreeing_table(150)
    selection = run(table, Metric(explicit="candidates"), labels=labels, fraction=0.5)
    assert selection.num_contradicted == (explicit_margin(table) < 0).sum()
    subset = selection.apply(table)
    assert (subset.column("reward_chosen").to_numpy() >= subset.column("reward_rejected").to_numpy()).all()


def test_nothing_is_left_where_every_label_is_contradicted_and_dropped():
    with pytest.raises(DataError, match=r"select\.labels"):
        run(margins([-1.0, -2.0]), labels="drop", k=1)


@pytest.mark.parametrize("labels", ["drop", "swap"])
def test_labels_cannot_be_treated_without_rewards(labels):
    table = scored_table(20, reward_chosen=None)
    with pytest.raises(SchemaError, match=f"select.labels {labels} reads reward_chosen, null in all 20 scored rows"):
        run(table, Metric(name="implicit"), labels=labels, k=5)


@pytest.mark.parametrize("labels", ["drop", "swap"])
def test_duplicates_and_contradicted_rows_are_left_out_side_by_side(labels):
    table = agreeing_table(80)
    positions = np.array([0, 7, 8, 79])
    left = table.filter(np.isin(np.arange(80), positions, invert=True))
    rule = Select(fraction=0.5, labels=labels)
    selection = select(CountedSource(table), SIMPO, Metric(), rule, positions)
    expected = select(CountedSource(left), SIMPO, Metric(), rule)
    assert selection.apply(table).equals(expected.apply(left))
    assert selection.excluded == expected.excluded | {"duplicate": 4}
    assert selection.num_rows == 80


# Groups.


def grouped(seed=0, num_rows=120, shares=(0.5, 0.3, 0.15, 0.05)):
    rng = np.random.default_rng(seed)
    table = margins(np.round(rng.normal(size=num_rows), 1).tolist())
    names = rng.choice(np.array(["code", "chat", "math", None], dtype=object), num_rows, p=shares)
    return _with(table, {"origin": pa.array(names.tolist(), pa.string())})


def best_of_groups(table, quotas):
    """Ids that a brute-force sort inside each group gives."""
    columns = [table.column(name).to_pylist() for name in ("origin", "reward_chosen", "id")]
    rows = sorted(zip(*columns, strict=True), key=lambda row: (-row[1], row[2]))
    return {row[2] for name, k in quotas.items() for row in [r for r in rows if r[0] == name][:k]}


@settings(max_examples=15)
@given(
    st.integers(0, 10**6), st.sampled_from(["proportional", "equal", {"math": 1.0, "code": 2.5}]), st.integers(1, 14)
)
def test_groups_keep_the_best_of_each_and_sum_to_k(seed, quotas, k):
    table = grouped(seed)
    selection = run(table, group_by="origin", quotas=quotas, k=k)
    kept = {name: cut.k for name, cut in zip(selection.groups, selection.cuts, strict=True)}
    assert sum(kept.values()) == selection.k == k
    assert kept_ids(selection, table) == best_of_groups(table, kept)


def test_each_group_is_cut_where_a_selection_of_it_alone_would_be():
    table = grouped(shares=(0.5, 0.3, 0.2, 0.0))
    selection = run(table, group_by="origin", fraction=0.3)
    for name, cut in zip(selection.groups, selection.cuts, strict=True):
        alone = table.filter(pa.array([origin == name for origin in table.column("origin").to_pylist()]))
        assert cut == run(alone, k=cut.k).cuts[0]


def test_group_statistics_are_those_of_the_whole_set():
    table = _with(agreeing_table(150), {"origin": ["a", "b", "c"] * 50})
    selection = run(table, Metric(), group_by="origin", fraction=0.3)
    assert selection.fitted.to_dict() == run(table, Metric(), fraction=0.3).fitted.to_dict()


def test_rows_without_a_group_and_groups_without_a_quota_are_counted():
    table = grouped()
    sizes = Counter(table.column("origin").to_pylist())
    selection = run(table, group_by="origin", quotas={"code": 1.0}, k=10)
    assert selection.excluded["group_null"] == sizes[None] > 0
    assert selection.excluded["group_without_quota"] == sizes["chat"] + sizes["math"]
    assert selection.groups == ("code",)
    assert {"code"} == set(selection.apply(table).column("origin").to_pylist())


def test_ties_inside_a_group_go_by_id():
    table = _with(margins([1.0] * 30), {"origin": ["a", "b"] * 15})
    selection = run(table, group_by="origin", k=8)
    for name in "ab":
        ids = sorted(id_ for id_, origin in zip(*(table.column(c).to_pylist() for c in ("id", "origin")), strict=True)
                     if origin == name)  # fmt: skip
        assert set(ids[:4]) <= kept_ids(selection, table)
    assert selection.k == 8
    assert (selection.num_tied, selection.num_tied_kept) == (30, 8)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array([3, 20, 3, 20]), ("20", "3")),
        (pa.array([True, False, True, False]), ("false", "true")),
        (pa.array(["x", "y", "x", "y"]).dictionary_encode(), ("x", "y")),
        (pa.array(["é", "", "é", ""], pa.large_string()), ("", "é")),
    ],
)
def test_groups_may_be_whole_numbers_truth_values_or_categories(values, names):
    table = _with(margins([1.0, 2.0, 3.0, 4.0]), {"origin": values})
    selection = run(table, group_by="origin", k=2)
    assert selection.groups == names
    assert rows_kept(table, selection) == {2, 3}


def test_a_group_column_of_another_type_is_refused_by_name():
    table = _with(margins([1.0, 2.0]), {"origin": [0.5, 0.25]})
    with pytest.raises(DataError, match=r"select\.group_by origin has type double; wanted text, whole numbers"):
        run(table, group_by="origin", k=1)


def test_a_group_column_that_is_not_there_is_named():
    with pytest.raises(SchemaError, match="origin"):
        run(margins([1.0, 2.0]), group_by="origin", k=1)


def test_a_group_column_that_is_null_everywhere_is_refused():
    table = _with(margins([1.0, 2.0]), {"origin": pa.nulls(2, pa.string())})
    with pytest.raises(DataError, match=r"select\.group_by origin is null in every row"):
        run(table, group_by="origin", k=1)


def test_a_named_group_that_no_row_belongs_to_is_one_clear_error():
    with pytest.raises(DataError, match=r"'maths'.*'chat', 'code', 'math'"):
        run(grouped(), group_by="origin", quotas={"maths": 1.0, "code": 1.0}, k=5)


def test_a_group_too_small_for_its_quota_is_one_clear_error():
    with pytest.raises(DataError, match=r"'math': 50 of"):
        run(grouped(), group_by="origin", quotas={"math": 1.0}, k=50)


def test_a_column_of_more_than_a_thousand_values_names_no_groups():
    for num_values, refused in ((1000, False), (1001, True)):
        table = _with(
            margins([float(i % 7) for i in range(1001)]), {"origin": [str(i % num_values) for i in range(1001)]}
        )
        if refused:
            with pytest.raises(DataError, match=r"select\.group_by origin has more than 1000 values"):
                run(table, group_by="origin", k=500)
        else:
            assert run(table, group_by="origin", k=500).k == 500


def test_a_thousand_groups_are_each_cut_by_themselves(monkeypatch):
    monkeypatch.setattr(source, "BLOCK_ROWS", 1000)
    values = np.random.default_rng(0).normal(size=4000).tolist()
    table = _with(margins(values), {"origin": [str(i % 1000) for i in range(4000)]})
    selection = select(source_of(table), SIMPO, EXPLICIT, Select(group_by="origin", k=2000))
    assert kept_ids(selection, table) == best_of_groups(table, {str(i): 2 for i in range(1000)})


def test_groups_are_shared_out_among_what_the_band_leaves():
    table = grouped()
    inside = table.filter(pa.array(np.abs(explicit_margin(table)) <= 0.5))
    rule = {"group_by": "origin", "fraction": 0.5}
    banded, alone = run(table, min_score=-0.5, max_score=0.5, **rule), run(inside, **rule)
    assert kept_ids(banded, table) == kept_ids(alone, inside)
    assert [cut.k for cut in banded.cuts] == [cut.k for cut in alone.cuts]


# Rows of one prompt, and repeated texts.


def talk(*contents):
    return [{"role": "user", "content": content} for content in contents]


def with_texts(table, prompts, texts):
    return _with(table, {
        schema.PROMPT: pa.array([talk(p) for p in prompts], schema.MESSAGES),
        schema.CHOSEN: pa.array([talk(t) for t in texts], schema.MESSAGES),
        schema.REJECTED: pa.array([talk("no " + t) for t in texts], schema.MESSAGES),
    })  # fmt: skip


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([{"fraction": 0.5}, {"k": 5}, {"min_score": -0.2}]))
def test_a_prompt_gives_its_best_rows_and_no_more(seed, cap, rule):
    rng = np.random.default_rng(seed)
    values, prompts = np.round(rng.normal(size=40), 1) + 0.0, [f"p{i}" for i in rng.integers(0, 9, 40)]
    table = with_texts(margins(values.tolist()), prompts, [f"text {i}" for i in range(40)])
    ids = table.column("id").to_pylist()
    ranked = sorted(range(40), key=lambda i: (-values[i], ids[i]))
    if "min_score" in rule:
        ranked = [i for i in ranked if values[i] >= rule["min_score"]]
    left = [i for n, i in enumerate(ranked) if [prompts[j] for j in ranked[:n]].count(prompts[i]) < cap]
    k = {"fraction": len(left) // 2, "k": 5, "min_score": len(left)}[next(iter(rule))]
    selection = run(table, per_prompt=cap, **rule)
    assert rows_kept(table, selection) == set(left[:k])
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
    table = _with(table, {"origin": origins})
    selection = run(table, deduplicate="exact", fraction=0.3, group_by=group_by)
    kept = rows_kept(table, selection)
    assert len({texts[i] for i in kept}) == len(kept) == selection.k
    ids = table.column("id").to_pylist()
    ranked = sorted(range(40), key=lambda i: (-values[i], ids[i]))
    if group_by is None:
        left = [i for n, i in enumerate(ranked) if texts[i] not in {texts[j] for j in ranked[:n]}]
        assert kept == set(left[:12])


def test_rules_apply_one_after_the_other():
    table = with_texts(agreeing_table(80), [f"p{i % 25}" for i in range(80)], [f"text {i % 50}" for i in range(80)])
    table = _with(table, {"origin": ["a", "b"] * 40})
    rule = {"labels": "drop", "max_score": 1.0, "per_prompt": 2, "deduplicate": "exact", "group_by": "origin"}
    selection = run(table, Metric(), fraction=0.5, **rule)
    subset = selection.apply(table)
    assert subset.num_rows == selection.k
    assert max(subset.column("potential").to_pylist()) <= 1.0
    assert min(subset.column("margin_explicit").to_pylist()) >= 0
    assert max(Counter(p[0]["content"] for p in subset.column("prompt").to_pylist()).values()) <= 2
    assert max(Counter(p[0]["content"] for p in subset.column("chosen").to_pylist()).values()) == 1
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
    assert rows_kept(table, run(table, metric, fraction=1.0)) == {0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_column_that_is_finite_nowhere_is_refused_with_a_count(bad):
    for metric in (Metric(), EXPLICIT, Metric(normalise="rank"), Metric(name="bees-add"), Metric(weight="auto")):
        with pytest.raises(DataError, match=r"none of 4 scored rows can be ranked: .*margin_explicit_not_finite': 4"):
            run(margins([bad] * 4), metric, k=1)


def test_a_negative_score_of_minus_zero_is_inside_a_band_from_zero():
    table = scored_table(reward_chosen=[0.0, 1.0], reward_rejected=[0.0, 1.0]).append_column("row", pa.array([0, 1]))
    assert rows_kept(table, run(table, min_score=0.0, max_score=0.0)) == {0, 1}
