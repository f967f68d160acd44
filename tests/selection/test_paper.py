"""The authors' selection, written anew from their description in plain numpy, picks the same pairs as ours."""

import numpy as np
import pytest

from pipeline.config import Metric, Objective, Select
from pipeline.selection import select
from tests.metrics.tables import scored_table
from tests.selection.sources import CountedSource, kept_ids


def authors_selection(table, weight: float, fraction: float) -> set[str]:
    """Largest z(max - min of all rewards) - weight * z(|difference of mean log-probs|), the last k of an argsort."""
    reward = np.array([max(row) - min(row) for row in table.column("rewards_all").to_pylist()])
    chosen, rejected = (
        table.column(f"policy_logp_{side}").to_numpy() / table.column(f"num_tokens_{side}").to_numpy()
        for side in ("chosen", "rejected")
    )
    logp = np.abs(chosen - rejected)
    score = (reward - reward.mean()) / reward.std() - weight * ((logp - logp.mean()) / logp.std())
    last = np.argsort(score)[-int(fraction * len(score)) :]
    return {table.column("id")[int(i)].as_py() for i in last}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("weight", "fraction"), [(1.0, 0.4), (2.5, 0.25), (0.5, 0.1)])
def test_the_authors_recipe_keeps_the_authors_pairs(seed, weight, fraction):
    table = scored_table(3000 + seed, seed=seed)
    metric = Metric(weight=weight, explicit="candidates")
    selection = select(CountedSource(table, (999,)), Objective(beta=2.5), metric, Select(fraction=fraction))
    assert kept_ids(selection, table) == authors_selection(table, weight, fraction)


def test_a_nan_row_wins_there_and_is_left_out_here():
    rewards = np.random.default_rng(0).normal(size=(100, 4))
    rewards[7, 2] = np.nan
    table = scored_table(100, rewards_all=list(rewards))
    selection = select(CountedSource(table), Objective(), Metric(explicit="candidates"), Select(fraction=0.4))
    assert selection.excluded["margin_explicit_not_finite"] == 1
    assert table.column("id")[7].as_py() not in kept_ids(selection, table)
    assert selection.k == 39
