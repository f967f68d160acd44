"""The rule of a former selection on other rows: each is judged by itself, by the statistics and thresholds of then."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Metric, Objective, Select
from pipeline.errors import ConfigError, DataError, IntegrityError
from pipeline.metrics import Ranker
from pipeline.selection import Query, summarise
from pipeline.selection.former import apply_former, former_rule
from pipeline.selection.selection import Reader
from tests.metrics.tables import agreeing_table
from tests.selection.sources import (
    EXPLICIT,
    SIMPO,
    CountedSource,
    ElsewherePasses,
    kept_ids,
    margins,
    run,
    source_of,
    subset,
    with_columns,
)
from tests.selection.test_passes import rows


def manifest_of(selection):
    return json.loads(json.dumps(selection.to_dict()))


def applied(former, table, metric=EXPLICIT, objective=SIMPO, source=None, passes=None, **rule):
    """What the rule keeps of the table; `former` is a selection or what a manifest holds of one."""
    former = former if isinstance(former, dict) else manifest_of(former)
    query = Query(objective=objective, metric=metric, rule=Select(stats_from="former", **rule))
    query = replace(query, rule=former_rule(former, query))
    source = source or CountedSource(table)
    return apply_former(source, *Reader(source, [query], passes).for_query(query), former, query)


RULES = [
    {"fraction": 0.3},
    {"k": 9},
    {"fraction": 0.5, "labels": "drop", "group_by": "origin"},
    {"fraction": 0.4, "labels": "swap"},
    {"min_score": -0.5, "max_score": 0.75},
    {"k": 12, "group_by": "origin", "quotas": {"code": 2.0, "math": 1.0}},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("metric", [EXPLICIT, Metric(weight="auto"), Metric(name="bees-mul")], ids=lambda m: m.name)
def test_on_its_own_rows_it_keeps_what_it_kept(metric, rule):
    table = rows(1)
    former = run(table, metric, **rule)
    found = applied(former, table, metric).selection
    assert subset(found, table).equals(subset(former, table))
    assert found.fitted.to_dict() == former.fitted.to_dict()
    assert found.id_digest == former.id_digest
    assert {name: cut.k for name, cut in found.cuts.items()} == {name: cut.k for name, cut in former.cuts.items()}


@settings(max_examples=5)
@given(st.integers(0, 99), st.randoms(use_true_random=False), st.floats(0, 1), st.sampled_from(RULES))
def test_rows_are_judged_one_by_one_in_any_order_and_partition(seed, random, share, rule):
    former, table = run(rows(0), Metric(), **rule), rows(seed).slice(0, 70)
    whole = applied(former, table, Metric())
    shuffled = table.take(random.sample(range(70), 70))
    again = applied(former, shuffled, Metric(), source=CountedSource(shuffled, cuts=(share,)), passes=ElsewherePasses())
    assert summarise(again, source_of(shuffled)) == summarise(whole, source_of(table))
    size = 1 + int(68 * share)
    kept: set[str] = set()
    for part in (table.slice(0, size), table.slice(size)):
        with contextlib.suppress(DataError):  # a part may hold no row that can be judged
            kept |= kept_ids(applied(former, part, Metric()).selection, part)
    assert kept == kept_ids(whole.selection, table)


def test_later_rows_are_scored_by_the_statistics_of_then():
    old, new = agreeing_table(100), agreeing_table(60, seed=1)
    former = run(old, Metric(), fraction=0.4)
    ranker = Ranker(objective=SIMPO, metric=Metric())
    scores = ranker.score(ranker.read(new), former.fitted)
    found = applied(former, new, Metric()).selection
    assert found.positions.tolist() == np.flatnonzero(scores >= former.cuts[None].threshold).tolist()
    assert found.scores.tolist() == scores[found.positions].tolist()


def test_ties_at_the_threshold_go_on_by_id():
    table = with_columns(margins([1.0] * 6).drop_columns("id"), {"id": list("abcdef")})
    former = run(table, k=3)
    later = with_columns(margins([1.0, 1.0, 2.0, 0.5, 1.0]).drop_columns("id"), {"id": ["c", "d", "z", "a", "bb"]})
    assert kept_ids(applied(former, later).selection, later) == {"c", "z", "bb"}


def test_the_band_applies_to_rows_that_come_later():
    former = run(margins([0.0, 1.0, 2.0]), min_score=0.5, max_score=2.0)
    found = applied(former, margins([0.4, 0.6, 5.0])).selection
    assert found.positions.tolist() == [1]
    assert found.excluded["outside_score_band"] == 2


def test_groups_keep_their_thresholds_and_new_ones_have_none():
    table = with_columns(margins([3.0, 1.0, 2.0, 0.0]), {"origin": ["a", "a", "b", "b"]})
    former = run(table, group_by="origin", k=2)
    later = with_columns(margins([2.5, 2.5, 9.0, 9.0, 4.0]), {"origin": pa.array(["a", "b", "c", None, "a"])})
    found = applied(former, later).selection
    assert found.positions.tolist() == [1, 4]
    assert {name: (cut.k, cut.num_candidates) for name, cut in found.cuts.items()} == {"a": (1, 2), "b": (1, 1)}
    assert (found.excluded["group_null"], found.excluded["group_without_quota"]) == (1, 1)


def test_rows_of_which_none_is_good_enough_are_no_error_and_rows_without_scores_are():
    former = run(margins([1.0, 2.0]), k=1)
    assert applied(former, margins([0.0])).selection.k == 0
    with pytest.raises(DataError, match="none of 1 scored rows can be ranked"):
        applied(former, margins([np.nan]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"objective": Objective(name="dpo")}, "whose objective is .*'simpo'.*this config has .*'dpo'"),
        ({"metric": Metric()}, "whose metric is .*'explicit'.*this config has .*'potential'"),
        ({"seed": 5}, "whose select.seed is 0; this config has 5. Thresholds hold for one select alone"),
        ({"labels": "swap"}, "whose select.labels is keep; this config has swap"),
    ],
    ids=str,
)
def test_another_objective_metric_or_rule_is_refused(given, says):
    table = agreeing_table(20)
    with pytest.raises(ConfigError, match=says):
        applied(run(table, k=5), table, **given)


def test_a_rule_that_compares_rows_is_refused():
    table = rows(0)
    wanted = "made with disagreement, per_prompt, deduplicate or normalise: rank. .* cannot be applied row by row"
    rules = ({"disagreement": "drop"}, {"per_prompt": 1}, {"deduplicate": "exact"})
    for rule, metric in (*((rule, EXPLICIT) for rule in rules), ({}, Metric(normalise="rank"))):
        with pytest.raises(ConfigError, match=wanted):
            applied(run(table, metric, k=5, **rule), table, metric)


@pytest.mark.parametrize("section", ["objective", "metric", "select", "fitted", "groups", "threshold", "boundary_id"])
def test_a_damaged_selection_is_refused(section):
    table = agreeing_table(20)
    damaged = manifest_of(run(table, k=5))
    del damaged[section]
    with pytest.raises(IntegrityError, match=r"without a usable selection \(KeyError\)"):
        applied(damaged, table)
