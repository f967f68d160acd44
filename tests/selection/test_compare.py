"""Comparisons of selections, against sets and sorts; the command is tested in tests/steps."""

import itertools

import numpy as np
import pytest

from pipeline.config import Metric, Select
from pipeline.errors import DataError
from pipeline.metrics.ranks import spearman
from pipeline.selection import Query, fit
from pipeline.selection.compare import compare
from tests.metrics.tables import scored_table
from tests.selection.sources import (
    EXPLICIT,
    SIMPO,
    CountedSource,
    ElsewherePasses,
    found_in,
    kept_ids,
    run,
    source_of,
)
from tests.selection.test_passes import rows

METRICS = {"potential": Metric(), "explicit": EXPLICIT, "random": Metric(name="random")}
QUERIES = {
    f"{name} {fraction}": (name, Query(objective=SIMPO, metric=metric, rule=Select(fraction=fraction)))
    for name, metric in METRICS.items()
    for fraction in (0.2, 0.7)
}


def test_numbers_are_those_of_sets_and_sorts():
    table = rows(0)
    found = compare(source_of(table), QUERIES).to_dict()
    kept = {label: kept_ids(run(table, q.metric, fraction=q.rule.fraction), table) for label, (_, q) in QUERIES.items()}
    assert found["selected"] == {label: len(ids) for label, ids in kept.items()}
    for (one, ours), (other, theirs) in itertools.product(kept.items(), repeat=2):
        assert found["overlap"][one][other] == len(ours & theirs) / len(ours | theirs)
    scores = {name: found_in(table, metric).ranking.scores for name, metric in METRICS.items()}
    ranked = ~np.isnan([*scores.values()]).any(axis=0)
    assert found["num_sampled"] == ranked.sum()
    for one, other in itertools.product(METRICS, repeat=2):
        wanted = spearman(scores[one][ranked], scores[other][ranked])
        assert found["rank_correlation"][one][other] == pytest.approx(wanted)
    assert {*found["contradiction"]["explicit 0.7"].values()} == {None}
    assert found["contradiction"]["explicit 0.2"]["explicit"] == 0


@pytest.mark.parametrize("room", [30, 2**18])
def test_order_parts_and_passes_move_no_number(room, monkeypatch):
    monkeypatch.setattr(fit, "DRAWN_ROWS", room)
    table = rows(2)
    expected = compare(source_of(table), QUERIES).to_dict()
    assert (expected["num_sampled"] == 30) == (room == 30)
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    assert compare(CountedSource(shuffled), QUERIES, ElsewherePasses()).to_dict() == expected


def test_metrics_that_rank_no_row_together_are_refused_by_label():
    table = scored_table(4, reward_chosen=[1.0, 2.0, np.nan, np.nan], policy_logp_chosen=[None, None, -1.0, -2.0])
    queries = {
        name: (name, Query(objective=SIMPO, metric=Metric(name=name), rule=Select(k=1)))
        for name in ("explicit", "implicit")
    }
    with pytest.raises(DataError, match=r"no row has a score under each of \['explicit', 'implicit'\]"):
        compare(source_of(table), queries)
