"""Rows that bear one id: the same content counts once, another content is refused."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import schema
from pipeline.config import Metric, Select
from pipeline.errors import SourceError
from pipeline.selection import select
from tests.metrics.tables import agreeing_table, scored_table
from tests.selection.sources import EXPLICIT, SIMPO, CountedSource, kept_ids, run, source_of, subset, with_columns


def with_digests(table):
    """Each row with the digest of a content of its own."""
    return with_columns(table, {schema.CONTENT_DIGEST: [f"content of {id_}" for id_ in table.column("id").to_pylist()]})


def rows_of(selection, table):
    """The kept rows without their order."""
    return sorted(subset(selection, table).drop_columns(["rewards_all"]).to_pylist(), key=lambda row: row["id"])


@pytest.mark.parametrize("metric", [Metric(), Metric(normalise="rank"), Metric(weight="auto"), Metric(name="random")])
@pytest.mark.parametrize("rule", [{"k": 20}, {"fraction": 0.5, "labels": "drop"}, {"fraction": 0.5, "labels": "swap"}])
def test_repeats_are_counted_and_change_nothing_else(metric, rule):
    once = with_digests(agreeing_table(50))
    twice = pa.concat_tables([once, once.slice(10, 5), once.slice(0, 3), once.slice(0, 1)])
    selection, alone = run(twice, metric, **rule), run(once, metric, **rule)
    assert selection.excluded == {**alone.excluded, "duplicate": 9}
    assert (selection.num_rows, alone.num_rows) == (59, 50)
    assert (selection.num_ranked, selection.num_contradicted) == (alone.num_ranked, alone.num_contradicted)
    assert selection.fitted.to_dict() == alone.fitted.to_dict()
    assert selection.id_digest == alone.id_digest
    assert rows_of(selection, twice) == rows_of(alone, once)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_of_repeats_with_other_scores_the_same_one_is_kept_in_any_order_and_partition(seed, random):
    rng = np.random.default_rng(seed)
    names = [f"{i:02d}" for i in rng.integers(0, 15, 40)]
    rewards = np.round(rng.normal(size=40), 1)
    rewards[rng.random(40) < 0.1] = np.nan
    table = with_digests(scored_table(id=names, reward_chosen=rewards))
    shuffled = table.take(random.sample(range(40), 40))
    source = CountedSource(shuffled, (random.randint(1, 9), 3), (random.random(),))
    selections = [select(scored, SIMPO, EXPLICIT, Select(fraction=0.5)) for scored in (source_of(table), source)]
    assert selections[0].to_dict() == selections[1].to_dict()
    assert selections[0].excluded["duplicate"] == 40 - len(set(names))
    assert rows_of(selections[0], table) == rows_of(selections[1], shuffled)


def test_rows_of_one_content_and_several_ids_all_count():
    table = with_columns(scored_table(9), {schema.CONTENT_DIGEST: ["the same"] * 9})
    assert kept_ids(run(table, fraction=1.0), table) == set(table.column("id").to_pylist())


def test_ids_of_several_contents_are_refused_by_name():
    table = with_columns(scored_table(id=list("abbacc")), {schema.CONTENT_DIGEST: ["1", "2", "3", "1", "4", "5"]})
    with pytest.raises(SourceError, match=r"2 ids stand for rows of different content, first \['b', 'c'\]\. Give each"):
        run(table, k=1)
