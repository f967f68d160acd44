"""Many selections found together are those found one by one; columns are read once, texts of chosen rows alone."""

import numpy as np
import pytest

from pipeline import schema
from pipeline.config import Metric, Objective, Select
from pipeline.metrics.ratio import RATIO_METHODS
from pipeline.selection import Query, Threads, select_many, summarise
from tests.metrics.tables import OF_ONE_REWARD, agreeing_table
from tests.selection.sources import EXPLICIT, SIMPO, CountedSource, with_texts
from tests.selection.test_passes import rows

TEXTS = {schema.PROMPT, schema.CHOSEN, schema.REJECTED}


def query(metric=None, objective=SIMPO, **rule) -> Query:
    return Query(objective=objective, metric=metric or Metric(), rule=Select(**rule))


WEIGHTS = [query(Metric(weight=w), fraction=0.3) for w in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)]
FRACTIONS = [query(fraction=f) for f in (0.05, 0.1, 0.25, 0.4, 0.5, 0.75, 0.9, 1.0)]
METRIC_SWEEP = [query(Metric(name=name), k=25) for name in OF_ONE_REWARD]
NORMALISERS = [query(Metric(normalise=n), k=25) for n in ("zscore", "robust", "rank", "none")]
RATIOS = [query(Metric(weight="auto", ratio=r), k=25) for r in RATIO_METHODS]
OBJECTIVES = [query(objective=Objective(name=n), k=25) for n in ("simpo", "dpo", "cpo", "orpo")]
SEEDS = [query(Metric(name="random"), k=25, seed=seed) for seed in range(4)]
RULES = [
    query(k=9),
    query(min_score=-0.5, max_score=0.5),
    query(fraction=0.5, min_score=0.0),
    query(fraction=0.3, group_by="origin"),
    query(k=12, group_by="origin", quotas="equal"),
    query(k=12, group_by="origin", quotas={"code": 2.0, "math": 1.0}),
    query(Metric(name="explicit", explicit="candidates"), fraction=0.3),
]
SWEEPS = {
    "weights": WEIGHTS,
    "fractions": FRACTIONS,
    "metrics": METRIC_SWEEP,
    "normalisers": NORMALISERS,
    "ratios": RATIOS,
    "objectives": OBJECTIVES,
    "seeds": SEEDS,
    "rules": RULES,
    "all": [*WEIGHTS, *FRACTIONS, *METRIC_SWEEP, *NORMALISERS, *RATIOS, *OBJECTIVES, *SEEDS, *RULES],
}


def swept(source, queries):
    return [found.selection.to_dict() for found in select_many(source, queries, Threads(num_threads=1))]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_finds_what_single_runs_find_and_reads_once(name):
    table = rows(1, 120)
    source = CountedSource(table)
    found = swept(source, SWEEPS[name])
    assert len(source.readings) == 1
    assert not TEXTS & {*source.readings[0]}
    for each, of_sweep in zip(SWEEPS[name], found, strict=True):
        assert [of_sweep] == swept(CountedSource(table), [each])


def test_treatments_of_labels_are_found_side_by_side_and_each_reads_once():
    table = rows(2)
    queries = [query(fraction=f, labels=labels) for labels in ("swap", "keep", "drop") for f in (0.4, 0.2)]
    source = CountedSource(table)
    found = swept(source, queries)
    assert len(source.readings) == 3
    for each, of_sweep in zip(queries, found, strict=True):
        assert [of_sweep] == swept(CountedSource(table), [each])
    assert swept(source, [queries[0], queries[2], queries[0]]) == [found[0], found[2], found[0]]


def test_no_query_reads_nothing():
    source = CountedSource(rows(0))
    assert swept(source, []) == []
    assert source.readings == []


def talking(num_rows=90):
    """Rows with texts; the first third says all the same."""
    texts = ["same" if i < num_rows // 3 else f"text {i}" for i in range(num_rows)]
    return with_texts(agreeing_table(num_rows), texts, texts)


def test_only_the_columns_of_metric_and_report_are_read_and_ids_where_a_tie_is_cut():
    source = CountedSource(talking())
    [found] = select_many(source, [query(EXPLICIT, k=10)])
    implicit = {f"{name}_{side}" for name in ("policy_logp", "num_tokens") for side in ("chosen", "rejected")}
    assert [set(columns) for columns in source.readings] == [{"id", "reward_chosen", "reward_rejected", *implicit}]
    assert source.taken == []
    summarise(found, source, num_examples=5)
    sampled = (source.table.num_rows, ("rewards_all",))
    assert source.taken == [(5, ("id",)), (5, ("id",)), sampled]


def test_the_columns_that_the_report_alone_wants_may_be_missing():
    table = agreeing_table(40).drop_columns(["policy_logp_chosen", "rewards_all"])
    source = CountedSource(table)
    [found] = select_many(source, [query(EXPLICIT, k=10)])
    assert np.isnan(found.selection.implicit).all()
    assert summarise(found, source)["margins"]["all"]["margin_implicit"]["count"] == 0


def test_texts_are_read_for_chosen_rows_alone():
    source = CountedSource(talking())
    [found] = select_many(source, [query(EXPLICIT, fraction=0.3, deduplicate="exact")])
    assert not TEXTS & {*source.readings[0]}
    num_read = sum(num_rows for num_rows, columns in source.taken if {*columns} >= TEXTS)
    assert num_read == 27 + found.selection.excluded["text_of_a_better_row"]
    assert found.selection.excluded["text_of_a_better_row"] > 0


def test_prompts_are_read_where_they_are_counted():
    source = CountedSource(talking())
    next(select_many(source, [query(EXPLICIT, fraction=0.3, per_prompt=2), query(k=3)]))
    assert [TEXTS & {*columns} for columns in source.readings] == [{schema.PROMPT}]
