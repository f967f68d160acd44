"""Lazy scoring in rounds, with an array of implicit margins as the model: the subset is that of all scores."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import schema
from pipeline.config import Metric, Objective, Select
from pipeline.errors import ConfigError, DataError
from pipeline.metrics.ids import id_hashes
from pipeline.selection import Query, select
from pipeline.selection.lazy import first_rows, next_rows
from pipeline.selection.ranking import rank
from pipeline.selection.selection import Reader
from tests.metrics.tables import scored_table
from tests.selection.sources import CountedSource, kept_ids, with_columns, with_texts

DPO = Objective(name="dpo", beta=1.0)


def unscored(explicit, prompts, groups) -> pa.Table:
    """Rows with rewards alone."""
    size = len(explicit)
    table = scored_table(
        reward_chosen=list(explicit),
        reward_rejected=[0.0] * size,
        **{name: [None] * size for name in schema.LOGPS},
    )
    texts = [f"answer {row}" for row in range(size)]
    return with_columns(with_texts(table, [f"prompt {p}" for p in prompts], texts), {"lang": pa.array(groups)})


def with_scores(table, implicit, outcomes) -> pa.Table:
    """The table with scores of the rows that are not skipped."""
    scored = [None if outcome == schema.SKIPPED else float(i) for i, outcome in zip(implicit, outcomes, strict=True)]
    zeros = [None if value is None else 0.0 for value in scored]
    columns = {schema.POLICY_LOGP_CHOSEN: scored} | dict.fromkeys(schema.LOGPS[1:], zeros)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.float64()))
    return with_columns(table, {schema.SCORING: pa.array(outcomes)})


def scored_lazily(table, implicit, query, statistics_rows) -> tuple[pa.Table, int]:
    """The table after the last round, and how many rounds there were."""
    sample, others = first_rows(id_hashes(table["id"].combine_chunks()), statistics_rows)
    outcomes = np.where(sample, schema.SAMPLED, np.where(others, schema.SCORED, schema.SKIPPED)).astype(object)
    for num_rounds in itertools.count(1):
        source = CountedSource(with_scores(table, implicit, outcomes))
        columns, repeats = Reader(source, [query]).for_query(query)
        rows = next_rows(source, columns, rank(columns, query, repeats))
        if not rows.size:
            return source.table, num_rounds
        assert (outcomes[rows] == schema.SKIPPED).all()
        outcomes[rows] = schema.SCORED
    raise AssertionError


RULES = st.fixed_dictionaries(
    {},
    optional={
        "labels": st.sampled_from(["drop", "swap"]),
        "per_prompt": st.integers(1, 2),
        "min_score": st.floats(-1, 0.5),
        "max_score": st.floats(0.5, 2),
        "quotas": st.sampled_from(["proportional", "equal", {"de": 2, "en": 1}]),
    },
)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(12, 90),
    st.sampled_from([0.05, 0.1, 0.25, 0.4, 0.6, 1.0]),
    st.sampled_from([0.25, 1.0, 4.0, "auto"]),
    st.sampled_from(["zscore", "robust", "none"]),
    st.sampled_from(["normal", "gamma", "ties"]),
    RULES,
)
def test_the_subset_is_that_of_all_scores_under_the_same_statistics(
    seed, size, fraction, weight, normalise, kind, rules
):
    if "quotas" in rules:
        rules.pop("per_prompt", None)  # not both: see below
    random = np.random.default_rng(seed)
    explicit, implicit = random.normal(0.3, 1, (2, size))
    if kind == "gamma":
        implicit *= random.gamma(0.5, 4, size)
    if kind == "ties":
        explicit, implicit = np.round(explicit), np.round(implicit)
    table = unscored(explicit, random.integers(0, size // 2, size), random.choice(["de", "en", "fr", None], size))
    group = {"group_by": "lang"} if "quotas" in rules else {}
    query = Query(
        objective=DPO,
        metric=Metric(weight=weight, normalise=normalise, ratio="std"),
        rule=Select(fraction=fraction, **group, **rules),
    )
    sample, _ = first_rows(id_hashes(table["id"].combine_chunks()), 10)
    every = with_scores(table, implicit, np.where(sample, schema.SAMPLED, schema.SCORED))
    try:
        expected = select(CountedSource(every), DPO, query.metric, query.rule)
    except DataError as error:
        with pytest.raises(DataError, match=str(error)[:12]):
            select(CountedSource(scored_lazily(table, implicit, query, 10)[0]), DPO, query.metric, query.rule)
        return
    lazy, num_rounds = scored_lazily(table, implicit, query, 10)
    found = select(CountedSource(lazy), DPO, query.metric, query.rule)
    assert kept_ids(found, lazy) == kept_ids(expected, every)
    assert found.scores.tobytes() == expected.scores.tobytes()
    assert found.fitted.to_dict() == expected.fitted.to_dict()
    assert found.excluded == expected.excluded
    assert num_rounds <= 5 or "per_prompt" in rules


def test_rewards_of_rows_without_scores_count_in_the_statistics():
    random = np.random.default_rng(0)
    explicit, implicit = random.normal(0.3, 1, (2, 200))
    table = unscored(explicit, range(200), ["de"] * 200)
    query = Query(objective=DPO, metric=Metric(), rule=Select(fraction=0.05))
    lazy, _ = scored_lazily(table, implicit, query, 20)
    outcomes = np.array(lazy[schema.SCORING].to_pylist())
    assert (outcomes == schema.SKIPPED).any()
    scales = select(CountedSource(lazy), DPO, query.metric, query.rule).fitted.normalisers
    of_sample = np.abs(implicit[outcomes == schema.SAMPLED])
    expected = {
        "margin_explicit": (explicit.mean(), explicit.std()),
        "margin_implicit_abs": (of_sample.mean(), of_sample.std()),
    }
    assert {term: (scale.center, scale.spread) for term, scale in scales.items()} == {
        term: pytest.approx(values) for term, values in expected.items()
    }


@pytest.mark.parametrize(
    ("metric", "rule", "problem"),
    [
        (Metric(name="bees-add"), {}, "metric bees-add"),
        (Metric(), {"where": "policy_logp_chosen < 0"}, r"select\.where reads"),
        (Metric(), {"per_prompt": 1, "group_by": "lang"}, r"leave out select\.per_prompt or group_by"),
    ],
)
def test_what_needs_all_scores_is_refused_where_rows_were_skipped(metric, rule, problem):
    table = unscored([1.0, 2.0, 3.0], [0, 1, 2], ["de"] * 3)
    lazy = with_scores(table, [0.5, 1.0, 0.0], [schema.SAMPLED, schema.SAMPLED, schema.SKIPPED])
    with pytest.raises(ConfigError, match=problem):
        select(CountedSource(lazy), DPO, metric, Select(k=1, **rule))
