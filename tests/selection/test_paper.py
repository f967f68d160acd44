"""The authors' selection, written anew from their description in plain numpy, picks the same pairs as the presets.

Their metrics are rand, rm_margin, logp_margin_norm_abs (the smallest first), rm-logp and rm-xlogp; ties are the one
thing not compared, for theirs fall by an unstable sort. Scored datasets of one's own are compared too: name their
folders, separated by ":", in ALIGNPOT_SCORED.
"""

import os

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Storage, parse_config
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.selection import TableSource, select
from tests.metrics.tables import on_policy_table, scored_table
from tests.selection.sources import CountedSource, kept_ids

RATIOS = (0.1, 0.25, 0.4, 0.9)
WEIGHTS = {"rm-logp": 1.0, "rm-xlogp": 2.5}
METRICS = {
    "rm_margin": {"name": "explicit"},
    "logp_margin_norm_abs": {"name": "implicit"},
    "rm-logp": {},
    "rm-xlogp": {"weight": 2.5},
}
GIVEN = [path for path in os.environ.get("ALIGNPOT_SCORED", "").split(":") if path]


def authors_scores(table: pa.Table, metric: str, reward: np.ndarray | None = None) -> np.ndarray:
    """Their score of every row; z over the whole set with numpy's population deviation."""
    if reward is None:
        rewards = np.vstack(table.column("rewards_all").to_numpy())
        reward = rewards.max(axis=1) - rewards.min(axis=1)
    chosen, rejected = (
        table.column(f"policy_logp_{side}").to_numpy() / table.column(f"num_tokens_{side}").to_numpy()
        for side in ("chosen", "rejected")
    )
    logp = np.abs(chosen - rejected)
    if metric == "rm_margin":
        return reward
    if metric == "logp_margin_norm_abs":
        return -logp
    return (reward - reward.mean()) / reward.std() - WEIGHTS[metric] * ((logp - logp.mean()) / logp.std())


def run(table, data, scored=None):
    """What the config keeps of the table."""
    config = parse_config({"scored": "scored", "output": {"path": "subset"}, **data})
    selection = select(scored or CountedSource(table, (999,)), config.objective, config.metric, config.select)
    return selection, kept_ids(selection, table)


def check_agrees(table, scores, ratio, found):
    """As many rows are kept as the authors keep, and all that are in however ties fall; returns ids near the cut."""
    selection, kept = found
    k = int(ratio * table.num_rows)
    last = np.sort(scores)[-k]
    # A score of ours and theirs may differ in the last bits, and so may rows that tie but for them.
    close = 1e-9 * np.abs(scores).max()
    ids = np.array(table.column("id").to_pylist())
    above, near = set(ids[scores > last + close]), set(ids[np.abs(scores - last) <= close])
    assert len(kept) == selection.k == k
    assert above <= kept <= above | near
    return near


def preset(metric: str, ratio: float, **more) -> dict:
    return {"preset": "paper", "metric": {**METRICS[metric], **more}, "select": {"fraction": ratio}}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_the_preset_keeps_the_authors_pairs(metric, seed):
    table = scored_table(1500 + seed, seed=seed)
    for ratio in RATIOS:
        near = check_agrees(table, authors_scores(table, metric), ratio, run(table, preset(metric, ratio)))
        assert len(near) == 1


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1])
def test_the_preset_keeps_the_authors_pairs_of_a_hundred_thousand(seed):
    table = scored_table(100_000, seed=seed)
    ids = np.array(table.column("id").to_pylist())
    for metric in METRICS:
        scores = authors_scores(table, metric)
        for ratio in RATIOS:
            _, kept = run(table, preset(metric, ratio), TableSource(table=table))
            assert kept == set(ids[np.argsort(scores)[-int(ratio * 100_000) :]])


def test_max_minus_min_is_the_signed_margin_of_the_best_and_the_worst_candidate():
    table = on_policy_table(500)
    candidates, signed = (
        run(table, preset("rm-logp", 0.4, explicit=explicit))[1] for explicit in ("candidates", "signed")
    )
    assert candidates == signed


def test_the_presets_alone_are_the_authors_defaults():
    table = scored_table(2000)
    check_agrees(table, authors_scores(table, "rm-logp"), 0.4, run(table, {"preset": "paper"}))
    check_agrees(table, authors_scores(table, "rm-xlogp"), 0.25, run(table, {"preset": "paper-selfplay"}))


def test_a_scale_of_the_implicit_reward_does_not_change_the_authors_pairs():
    table = scored_table(2000)
    kept = [run(table, {"preset": "paper", "objective": {"beta": beta}})[1] for beta in (0.01, 2.5, 10.0)]
    assert kept[0] == kept[1] == kept[2]


def test_random_selections_of_the_presets_have_the_authors_size_and_go_by_the_seed():
    """The authors draw by numpy's generator, we by a hash of the ids: size and dependence on the seed are compared."""
    table = scored_table(2000)
    data = {"preset": "paper", "metric": {"name": "random"}}
    found = {seed: run(table, {**data, "select": {"fraction": 0.25, "seed": seed}})[1] for seed in (42, 43)}
    assert len(found[42]) == len(found[43]) == int(0.25 * 2000)
    assert 60 < len(found[42] & found[43]) < 190  # 125 expected
    assert run(table, {**data, "select": {"fraction": 0.25}})[1] == found[42]


def test_a_nan_row_wins_there_and_is_left_out_here():
    rewards = np.random.default_rng(0).normal(size=(100, 4))
    rewards[7, 2] = np.nan
    table = scored_table(100, rewards_all=list(rewards))
    selection, kept = run(table, {"preset": "paper"})
    assert selection.excluded["margin_explicit_not_finite"] == 1
    assert table.column("id")[7].as_py() not in kept
    assert selection.k == 39


def test_a_fraction_of_no_row_keeps_all_rows_there_and_is_refused_here():
    assert len(np.arange(5)[-int(0.1 * 5) :]) == 5
    with pytest.raises(Exception, match="no row at all"):
        run(scored_table(5), {"preset": "paper", "select": {"fraction": 0.1}})


def stand_in() -> TableSource:
    return TableSource(table=on_policy_table(3000))


def dataset_at(path: str) -> Dataset:
    place = Place.open(path, Storage())
    return Dataset.open(place)


@pytest.mark.parametrize("path", ["stand-in", *GIVEN])
def test_the_preset_keeps_the_authors_pairs_of_real_scores(path):
    """Where a dataset has no rewards of all candidates, the explicit margin is chosen minus rejected on both sides."""
    scored = stand_in() if path == "stand-in" else dataset_at(path)
    names = ("id", "reward_chosen", "reward_rejected", "rewards_all", "policy_logp_chosen", "policy_logp_rejected",
             "num_tokens_chosen", "num_tokens_rejected")  # fmt: skip
    table = pa.concat_tables(scored.tables(names))
    explicit = "candidates" if table.column("rewards_all").null_count < table.num_rows else "signed"
    reward = None
    if explicit == "signed":
        reward = table.column("reward_chosen").to_numpy() - table.column("reward_rejected").to_numpy()
    for metric in METRICS:
        scores = authors_scores(table, metric, reward)
        assert np.isfinite(scores).all()
        for ratio in RATIOS:
            check_agrees(table, scores, ratio, run(table, preset(metric, ratio, explicit=explicit), scored))
