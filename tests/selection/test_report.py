"""What a selection reports: numbers of the table, ends of a full sort, and a table that no id can break."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Metric, Objective, Select
from pipeline.metrics import METRICS, explicit_margin, implicit_margin
from pipeline.selection import Query, render, select_many, summarise
from tests.metrics.tables import agreeing_table, scored_table
from tests.selection.sources import EXPLICIT, SIMPO, CountedSource, margins, run


def report_of(table, metric=None, objective=SIMPO, num_examples=10, **rule):
    source = CountedSource(table)
    query = Query(objective=objective, metric=metric or Metric(), rule=Select(**rule))
    return summarise(next(select_many(source, [query])), source, num_examples=num_examples)


def test_numbers_are_those_of_the_table():
    table = scored_table(2000)
    report = report_of(table, fraction=0.4)
    keep = np.isin(np.arange(2000), run(table, Metric(), fraction=0.4).positions)
    explicit, implicit = explicit_margin(table), implicit_margin(table, SIMPO)
    for group, rows in (("all", keep | True), ("selected", keep)):
        assert report["margins"][group]["margin_explicit"]["mean"] == pytest.approx(explicit[rows].mean())
        assert report["margins"][group]["margin_implicit"]["std"] == pytest.approx(implicit[rows].std())
        signs = report["signs"][group]
        assert signs["contradicted_by_reward"]["count"] == (explicit[rows] < 0).sum()
        assert signs["contradicted_by_policy"]["share"] == pytest.approx((implicit[rows] < 0).mean())
        assert signs["reward_against_policy"]["count"] == (explicit * implicit < 0)[rows].sum()
    assert report["selection"]["k"] == keep.sum() == 800


@settings(max_examples=30)
@given(st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=60), st.integers(1, 12))
def test_top_and_bottom_are_the_ends_of_a_full_sort(rewards, num):
    table = margins(rewards)
    report = report_of(table, EXPLICIT, num_examples=num, k=1)
    rows = list(zip(rewards, table.column("id").to_pylist(), strict=True))
    assert [row["id"] for row in report["top"]] == [i for _, i in sorted(rows, key=lambda r: (-r[0], r[1]))[:num]]
    assert [row["id"] for row in report["bottom"]] == [i for _, i in sorted(rows)[:num]]


def test_ends_of_rows_that_all_tie_are_the_smallest_ids():
    table = margins([1.0] * 200)
    report = report_of(table, EXPLICIT, k=7)
    smallest = sorted(table.column("id").to_pylist())[:10]
    assert [row["id"] for row in report["top"]] == [row["id"] for row in report["bottom"]] == smallest


def test_report_does_not_depend_on_the_order_of_rows():
    table = scored_table(500, reward_chosen=np.round(np.random.default_rng(0).normal(size=500)))
    assert report_of(table, fraction=0.3) == report_of(table.take(np.arange(499, -1, -1)), fraction=0.3)


def test_contradicted_pairs_are_counted_though_the_margin_is_absolute():
    table = scored_table(300)
    report = report_of(table, Metric(explicit="candidates"), k=50)
    assert report["signs"]["all"]["contradicted_by_reward"]["count"] == (explicit_margin(table) < 0).sum()
    assert report["margins"]["all"]["margin_explicit"]["mean"] > 0


def test_margins_of_a_model_that_was_not_run_are_null_not_nan():
    table = scored_table(30, policy_logp_chosen=None)
    report = report_of(table, EXPLICIT, k=3)
    assert report["margins"]["all"]["margin_implicit"] == {"count": 0, "mean": None, "std": None}
    assert report["signs"]["all"]["contradicted_by_policy"] == {"count": 0, "of": 0, "share": None}
    assert report["top"][0]["margin_implicit"] is None


def test_rows_that_cannot_be_ranked_are_in_no_number():
    rewards = [1.0, float("nan"), 3.0, float("inf"), 2.0]
    report = report_of(scored_table(reward_chosen=rewards), EXPLICIT, k=2)
    assert report["selection"]["excluded"]["margin_explicit_not_finite"] == 2
    assert report["margins"]["all"]["margin_explicit"]["count"] == 3
    assert len(report["top"]) == len(report["bottom"]) == 3


def test_report_is_strict_json_and_survives_it():
    report = report_of(scored_table(60, policy_logp_chosen=None), Metric(name="random"), k=3)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_table_shows_counts_shares_and_ends():
    table = scored_table(40, reward_chosen=[float("nan"), *range(39)])
    text = render(report_of(table, k=10))
    assert "rows ranked and selected" in text
    assert "margin_explicit_not_finite" in text
    assert "reward prefers rejected" in text
    assert text.count("\n") > 30
    assert all(len(line) < 120 for line in text.splitlines())


def test_table_opens_with_the_rule():
    table = scored_table(40)
    first = render(report_of(table, EXPLICIT, fraction=0.4)).splitlines()[0]
    assert first == "metric explicit (signed), objective simpo beta 2.0, fraction 0.4"
    first = render(report_of(table, Metric(weight=0.5), Objective(name="dpo", beta=0.1), k=10)).splitlines()[0]
    assert first == (
        "metric potential (signed explicit - 0.5 x absolute implicit, normalise zscore), objective dpo beta 0.1, k 10"
    )
    first = render(report_of(table, Metric(name="implicit"), Objective(name="ipo"), k=10)).splitlines()[0]
    assert first == "metric implicit (absolute, smallest first), objective ipo, k 10"


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_reported(name):
    table = agreeing_table(60)
    if name == "divergence":  # of several rewards
        several = {"reward_chosen": "reward_a_chosen", "reward_rejected": "reward_a_rejected"}
        table = table.rename_columns([several.get(column, column) for column in table.column_names])
        table = table.append_column("reward_b_chosen", table["reward_a_rejected"])
        table = table.append_column("reward_b_rejected", pa.array([0.25 * row for row in range(60)]))
    report = report_of(table, Metric(name=name), k=10)
    assert render(report).startswith(f"metric {name}")
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize(
    ("metric", "rule", "shown"),
    [
        (Metric(weight="auto", ratio="std"), {"k": 5}, "1 (auto by std) x absolute implicit"),
        (Metric(), {"min_score": 0.5, "max_score": 1.0}, "min_score 0.5, max_score 1.0"),
        (Metric(), {"fraction": 0.5, "group_by": "origin"}, "group_by origin"),
        (Metric(), {"fraction": 0.5, "labels": "swap"}, "labels swap"),
    ],
)
def test_table_opens_with_every_rule(metric, rule, shown):
    table = agreeing_table(60).append_column("origin", [["code", "chat"] * 30])
    assert shown in render(report_of(table, metric, **rule)).splitlines()[0]


def test_table_shows_what_each_group_holds_and_gives():
    table = agreeing_table(60).append_column("origin", [["code"] * 45 + ["chat"] * 15])
    text = render(report_of(table, group_by="origin", k=20))
    assert [line.split() for line in text.splitlines() if "origin c" in line] == [
        ["origin", "chat", "15", "5"], ["origin", "code", "45", "15"]]  # fmt: skip


def test_swapped_labels_are_counted_and_no_longer_contradicted():
    table = agreeing_table(100)
    report = report_of(table, labels="swap", fraction=0.4)
    contradicted = int((explicit_margin(table) < 0).sum())
    assert report["selection"]["num_contradicted"] == contradicted > 0
    assert report["signs"]["all"]["contradicted_by_reward"]["count"] == 0
    assert ["labels", "swapped", str(contradicted)] in [line.split() for line in render(report).splitlines()]


def test_table_leaves_out_what_nothing_gives():
    text = render(report_of(scored_table(30, policy_logp_chosen=None), EXPLICIT, k=3))
    assert "top of all ranked rows" in text
    assert "bottom of all ranked rows" in text
    assert "margin_explicit mean" in text
    assert "margin_implicit" not in text
    assert "policy prefers rejected" not in text


def test_no_examples_can_be_asked_for():
    report = report_of(scored_table(20), num_examples=0, k=5)
    assert report["top"] == report["bottom"] == []
    assert render(report)


HOSTILE = "\x1b]0;title\x07\nrows scored  9\x9b31m\u202e\u2028\ud800\t"


def test_no_id_or_group_acts_on_the_terminal_or_fills_it():
    table = agreeing_table(60)
    ids = [f"{i}{HOSTILE}" if i % 2 else "x" * 100_000 + str(i) for i in range(60)]
    table = table.set_column(table.schema.get_field_index("id"), "id", [[text.replace("\ud800", "") for text in ids]])
    table = table.append_column("origin", [[ids[1].replace("\ud800", ""), ids[0]] * 30])
    report = report_of(table, group_by="origin", k=20)
    text = render(report)
    assert {row["id"] for row in report["top"]} < set(table.column("id").to_pylist())
    assert all(line.isprintable() and len(line) < 200 for line in text.split("\n"))
    assert sum(line.startswith("rows scored") for line in text.split("\n")) == 1
