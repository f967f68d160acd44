"""Many selections found together are those found one by one, and cost hardly more readings."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Metric, Objective, Select
from pipeline.metrics import METRICS
from pipeline.metrics.ratio import RATIO_METHODS
from pipeline.selection import Query, Threads, select, select_many
from tests.metrics.tables import agreeing_table
from tests.selection.sources import CountedSource, kept_ids
from tests.selection.test_passes import rows

SIMPO = Objective()


def query(metric=None, objective=SIMPO, **rule) -> Query:
    return Query(objective=objective, metric=metric or Metric(), rule=Select(**rule))


WEIGHTS = [query(Metric(weight=w), fraction=0.3) for w in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)]
FRACTIONS = [query(fraction=f) for f in (0.05, 0.1, 0.25, 0.4, 0.5, 0.75, 0.9, 1.0)]
METRIC_SWEEP = [query(Metric(name=name), k=25) for name in METRICS]
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


def alone(each: Query, table, sampled=None):
    """The selection by itself, and how often it read its source."""
    source = CountedSource(table, sampled=sampled)
    selection = select_many(source, [each], passes=Threads(num_threads=1))[0]
    return selection.to_dict(), len(source.readings)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_finds_what_single_runs_find(name):
    table = rows(1, 120)
    swept = select_many(CountedSource(table), SWEEPS[name], passes=Threads(num_threads=1))
    for found, each in zip(swept, SWEEPS[name], strict=True):
        assert found.to_dict() == alone(each, table)[0]


def untied():
    origin = pa.array(np.random.default_rng(0).choice(["code", "chat", "math"], 300), pa.string())
    return agreeing_table(300).append_column("origin", origin)


@pytest.mark.parametrize("name", [name for name in SWEEPS if name != "all"])
@pytest.mark.parametrize("sampled", [True, False])
def test_a_sweep_reads_no_more_often_than_its_longest_run_and_once_more(name, sampled):
    table = untied()
    sample = table.slice(0, 200) if sampled else None
    together = CountedSource(table, sampled=sample)
    swept = select_many(together, SWEEPS[name], passes=Threads(num_threads=1))
    assert sum(found.num_tied_kept < found.num_tied for found in swept) <= 1  # bees-mul gives many rows a score of 1
    assert len(together.readings) <= max(alone(each, table, sample)[1] for each in SWEEPS[name]) + 1


def test_a_sweep_of_unlike_selections_reads_for_each_of_their_steps_once():
    source = CountedSource(untied())
    select_many(source, SWEEPS["all"], passes=Threads(num_threads=1))
    # Survey, medians, deviations, groups, thresholds (two), ties of bees-mul, ids.
    assert len(source.readings) <= 8 < len(SWEEPS["all"]) / 4


def test_treatments_of_labels_are_found_side_by_side():
    table = rows(2)
    queries = [query(fraction=0.4, labels=labels) for labels in ("swap", "keep", "drop", "swap")]
    swept = select_many(CountedSource(table), queries)
    for found, each in zip(swept, queries, strict=True):
        assert found.to_dict() == select(CountedSource(table), SIMPO, each.metric, each.rule).to_dict()
    assert kept_ids(swept[0], table) == kept_ids(swept[3], table)


def test_duplicates_are_left_out_of_every_selection_of_a_sweep():
    table = rows(3)
    positions = np.array([4, 50, 51], dtype=np.int64)
    left = table.filter(np.isin(np.arange(table.num_rows), positions, invert=True))
    for found, other in zip(
        select_many(CountedSource(table), RULES, positions), select_many(CountedSource(left), RULES), strict=True
    ):
        assert kept_ids(found, table) == kept_ids(other, left)
        assert found.id_digest == other.id_digest


def test_what_is_not_verified_has_no_digest_and_reads_no_id():
    source = CountedSource(agreeing_table(90))
    selection = select_many(source, [query(fraction=0.5)], verify=False)[0]
    assert selection.id_digest == ""
    assert source.readings
    assert all("id" not in columns for columns in source.readings)


def test_no_query_reads_nothing():
    source = CountedSource(rows(0))
    assert select_many(source, []) == []
    assert source.readings == []
