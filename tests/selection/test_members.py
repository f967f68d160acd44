"""Several rewards of a pair: one margin of them by every rule, the same for any order and parts of the rows."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pipeline
from pipeline import schema
from pipeline.config import Metric, Select
from pipeline.errors import ConfigError, DataError
from pipeline.selection import Query, select_many
from pipeline.selection.former import apply_former, former_fitted, former_rule
from pipeline.selection.selection import Reader
from tests.metrics.tables import scored_table
from tests.selection.sources import SIMPO, CountedSource, ElsewherePasses, best_first, kept_ids, run, subset

NAMES = ("a", "b", "c")
SPREADS = (1.0, 50.0, 0.01)


def table(num_rows: int = 60, *, seed: int = 0) -> pa.Table:
    """Scored rows with three rewards in very different units: the second far from 0, the third often tied."""
    rng = np.random.default_rng([seed, 7])
    rows = scored_table(num_rows, seed=seed).drop_columns(["reward_chosen", "reward_rejected", "rewards_all"])
    quality = rng.normal(0.5, 1.0, num_rows)
    for name, spread in zip(NAMES, SPREADS, strict=True):
        sides = [sign * quality / 2 + rng.normal(0, 0.6, num_rows) for sign in (1, -1)]
        for column, side in zip(schema.reward_columns(name), sides, strict=True):
            values = (np.round(side) if name == "c" else side) * spread
            rows = rows.append_column(column, pa.array(values + 100.0 if name == "b" else values))
    return rows.append_column("lang", pa.array(["de" if i % 3 else "fr" for i in range(num_rows)]))


def margins(rows: pa.Table) -> dict[str, np.ndarray]:
    sides = {name: [rows[column].to_numpy() for column in schema.reward_columns(name)] for name in NAMES}
    return {name: chosen - rejected for name, (chosen, rejected) in sides.items()}


def scaled(rows: pa.Table, names: tuple[str, ...] = NAMES) -> np.ndarray:
    """In units of the root mean square: z-scores of a set that holds each pair in both orders."""
    found = margins(rows)
    return np.array([found[name] / np.sqrt(np.mean(found[name] ** 2)) for name in names])


def ranked(rows: pa.Table) -> np.ndarray:
    """By counting, in the set of both orders."""
    made = []
    for values in margins(rows).values():
        both = np.concatenate([values, -values])
        share = [np.mean(both < value) + np.mean(both == value) / 2 for value in values]
        made.append(2 * np.array(share) - 1)
    return np.array(made)


EVERY = table()
RULES: dict[str, tuple[Any, Any]] = {
    "default": (None, lambda: scaled(EVERY).mean(axis=0)),
    "mean": ("mean", lambda: scaled(EVERY).mean(axis=0)),
    "min": ("min", lambda: scaled(EVERY).min(axis=0)),
    "median": ("median", lambda: np.median(scaled(EVERY), axis=0)),
    "majority": ("majority", lambda: np.sign(scaled(EVERY)).mean(axis=0)),
    "subset": ({"members": ["c", "a"]}, lambda: scaled(EVERY, ("c", "a")).mean(axis=0)),
    "alone": ({"members": ["b"], "normalise": "none"}, lambda: margins(EVERY)["b"]),
    "weights": ({"weights": {"a": 2, "c": -0.5}}, lambda: np.array([2, -0.5]) @ scaled(EVERY, ("a", "c"))),
    "raw": ({"weights": {"a": 2, "b": 1}, "normalise": "none"}, lambda: 2 * margins(EVERY)["a"] + margins(EVERY)["b"]),
    "uncertain": (
        {"rule": "mean-minus-std", "penalty": 0.5},
        lambda: scaled(EVERY).mean(axis=0) - 0.5 * scaled(EVERY).std(axis=0),
    ),
    "ranks": ({"normalise": "rank"}, lambda: ranked(EVERY).mean(axis=0)),
}


def chosen(rows: pa.Table, combine: Any = None, name: str = "explicit", **rule: Any):
    return run(rows, Metric(name=name, combine=combine), **(rule or {"fraction": 1.0}))


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_makes_its_margin_whatever_the_order_and_the_parts(rule: str) -> None:
    combine, wanted = RULES[rule]
    found = chosen(EVERY, combine)
    np.testing.assert_allclose(found.scores, wanted(), rtol=1e-12, atol=1e-12)
    order = np.random.default_rng(1).permutation(EVERY.num_rows)
    again = run(EVERY.take(pa.array(order)), Metric(name="explicit", combine=combine), fraction=1.0)
    assert again.scores.tolist() == found.scores[order].tolist()
    assert again.fitted.to_dict() == found.fitted.to_dict()
    query = Query(objective=SIMPO, metric=Metric(name="explicit", combine=combine), rule=Select(fraction=1.0))
    [elsewhere] = select_many(CountedSource(EVERY), [query], ElsewherePasses())
    assert elsewhere.selection.scores.tolist() == found.scores.tolist()


def test_the_potential_takes_the_combined_margin_and_the_subset_shows_it() -> None:
    explicit = scaled(EVERY).mean(axis=0)
    implicit = np.abs(chosen(EVERY, "mean", "implicit").implicit)
    found = chosen(EVERY, "mean", "potential")
    z = [(values - values.mean()) / values.std() for values in (explicit, implicit)]
    np.testing.assert_allclose(found.scores, z[0] - z[1], rtol=1e-9)
    rows = subset(found, EVERY)
    np.testing.assert_allclose(rows["margin_explicit"].to_numpy(), explicit, rtol=1e-12)
    assert rows["reward_b_chosen"].equals(EVERY["reward_b_chosen"])


def test_divergence_is_the_mean_of_the_margins_of_several_rewards() -> None:
    np.testing.assert_allclose(chosen(EVERY, None, "divergence").scores, scaled(EVERY).mean(axis=0), rtol=1e-12)
    with pytest.raises(ConfigError, match="that of several rewards"):
        run(scored_table(9), Metric(name="divergence"), k=3)
    with pytest.raises(ValueError, match="leave combine"):
        Metric(name="divergence", combine="min")


def test_scales_are_those_of_the_rows_that_where_leaves_and_repeats_count_once() -> None:
    german = EVERY.filter(pa.compute.equal(EVERY["lang"], "de"))
    found = chosen(pa.concat_tables([EVERY, EVERY.slice(0, 20)]), "min", where='lang == "de"', fraction=1.0)
    assert sorted(found.scores.tolist()) == sorted(chosen(german, "min").scores.tolist())


@pytest.mark.parametrize("combine", ["mean", "majority", "min", {"normalise": "rank"}])
def test_labels_are_judged_by_all_rewards_together(combine: Any) -> None:
    """A pair is contradicted if it would have a margin above 0 the other way round."""
    reversed_ = EVERY.rename_columns([
        name.replace("chosen", "*").replace("rejected", "chosen").replace("*", "rejected")
        for name in EVERY.column_names
    ]).select(EVERY.column_names)  # fmt: skip
    against = chosen(reversed_, combine).scores > 0
    assert 0 < against.sum() < EVERY.num_rows / 2
    dropped = chosen(EVERY, combine, labels="drop", fraction=1.0)
    assert dropped.excluded["contradicted_by_reward"] == against.sum()
    assert kept_ids(dropped, EVERY) == {*EVERY.filter(~against)["id"].to_pylist()}
    swapped = chosen(EVERY, combine, labels="swap", fraction=1.0)
    assert swapped.swapped.tolist() == against.tolist()
    wanted = np.where(against, chosen(reversed_, combine).scores, chosen(EVERY, combine).scores)
    assert swapped.scores.tolist() == wanted.tolist()
    rows = subset(swapped, EVERY)
    assert (
        rows["reward_b_chosen"].to_numpy()[against].tolist() == EVERY["reward_b_rejected"].to_numpy()[against].tolist()
    )


@pytest.mark.parametrize(("labels", "at_least"), [("keep", 2), ("keep", 3), ("swap", 3)])
def test_agreement_keeps_the_pairs_on_which_enough_rewards_prefer_chosen(labels: str, at_least: int) -> None:
    wanted = np.array([*margins(EVERY).values()])
    if labels == "swap":
        wanted = np.where(scaled(EVERY).mean(axis=0) < 0, -wanted, wanted)
    agree = (wanted > 0).sum(axis=0) >= at_least
    found = chosen(EVERY, "mean", labels=labels, agreement={"at_least": at_least}, fraction=1.0)
    assert kept_ids(found, EVERY) == {*EVERY.filter(agree)["id"].to_pylist()}
    assert found.excluded["too_few_rewards_agree"] == (~agree).sum()
    assert found.num_ranked == agree.sum()


def test_one_member_is_what_the_only_reward_is() -> None:
    sides = dict(zip(("reward_chosen", "reward_rejected"), schema.reward_columns("a"), strict=True))
    alone = EVERY.select(["id", *sides.values()]).rename_columns(["id", *sides])
    named = chosen(EVERY, {"members": ["a"]}, fraction=0.3)
    assert kept_ids(named, EVERY) == kept_ids(chosen(alone, fraction=0.3), alone)


def test_a_former_selection_judges_new_rows_by_its_own_scales() -> None:
    new = table(40, seed=3)
    for rule in ({"fraction": 0.4}, {"labels": "swap", "agreement": {"at_least": 2}, "fraction": 0.4}):
        query = Query(objective=SIMPO, metric=Metric(combine="min"), rule=Select(**rule)).on(EVERY.schema)
        [first] = select_many(CountedSource(EVERY), [query])
        former = first.selection.to_dict()
        again = Query(objective=SIMPO, metric=query.metric, rule=former_rule(former, query))
        for rows in (EVERY, new, new.slice(0, 11)):
            read = Reader(CountedSource(rows), [again]).for_query(again, former_fitted(former))
            found = apply_former(CountedSource(rows), *read, former, again).selection
            assert found.fitted.to_dict() == first.selection.fitted.to_dict()
            if rows is EVERY:
                assert found.id_digest == first.selection.id_digest
    by_rank = Query(objective=SIMPO, metric=Metric(combine={"normalise": "rank"}), rule=Select(k=3)).on(EVERY.schema)
    [first] = select_many(CountedSource(EVERY), [by_rank])
    with pytest.raises(ConfigError, match="normalise: rank"):
        former_rule(first.selection.to_dict(), by_rank)


def test_calls_combine_by_keyword_and_rank_rows_without_files() -> None:
    kept = pipeline.select(EVERY, metric="explicit", combine="min", k=7).to_arrow()
    scores = pipeline.potential(EVERY, metric="explicit", combine="min")
    assert kept["id"].to_pylist() == [EVERY["id"][i].as_py() for i in sorted(best_first(EVERY, scores)[:7])]
    agreement = pipeline.compare(EVERY, metrics=["explicit", {"name": "explicit", "combine": "min"}]).overlap
    assert 0 < agreement[0, 2] < 1
    assert {"potential", "explicit"} <= {*pipeline.compare(EVERY).metrics}
    assert pipeline.audit(EVERY, above=0.0).to_arrow().num_rows > 0


def test_the_report_says_how_far_the_rewards_agree() -> None:
    found = pipeline.select(EVERY, metric="explicit", combine="mean", k=7).report["rewards"]
    given = np.array([*margins(EVERY).values()])
    assert [*found["correlation"]] == [*NAMES]
    np.testing.assert_allclose(
        [[*row.values()] for row in found["correlation"].values()], np.corrcoef(given), atol=1e-6
    )
    for name, values in margins(EVERY).items():
        assert found["with_label"][name] == {"count": (values > 0).sum(), "of": 60, "share": np.mean(values > 0)}


@pytest.mark.parametrize(
    ("combine", "rule", "words"),
    [
        ({"members": ["a", "d"]}, {}, r"reads the rewards \['a', 'd'\]; the scored dataset holds \['a', 'b', 'c'\]"),
        ({"weights": {"d": 1}}, {}, "metric.combine reads"),
        (None, {"agreement": {"at_least": 4}}, "wants 4 rewards to agree, and there are 3"),
    ],
)
def test_rewards_that_are_not_there_are_refused(combine: Any, rule: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        chosen(EVERY, combine, fraction=0.5, **rule)


def test_a_reward_that_never_differs_has_no_scale() -> None:
    flat = EVERY.drop_columns(["reward_c_rejected"]).append_column("reward_c_rejected", EVERY["reward_c_chosen"])
    with pytest.raises(DataError, match="the margin of reward c has no spread"):
        chosen(flat, "mean")
    assert chosen(flat, {"members": ["a", "b"]}).k == 60


@pytest.mark.parametrize(
    ("combine", "words"),
    [
        ({"rule": "min", "weights": {"a": 1}}, "weights are for rule: weighted"),
        ("weighted", "weights are for rule: weighted"),
        ({"members": ["a", "a"]}, "names a reward twice"),
        ({"members": ["a"], "weights": {"b": 1}}, "leave members out"),
        ("most", "mean"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(combine: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Metric(combine=combine)
