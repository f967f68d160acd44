from dataclasses import replace

import numpy as np
import pytest

from jobs.study import table
from jobs.study.compare import compare
from jobs.study.trials import (
    ALL,
    CURVE,
    GRID,
    IMPLICIT,
    LINE,
    LINE_AND_IMPLICIT,
    QUICK,
    RANDOM,
    RAW,
    TRUTH,
    Trial,
    grid_name,
    run_trials,
)
from pipeline.errors import DataError
from pipeline.metrics.ratio import RATIO_METHODS

RULES = [
    *(grid_name(weight) for weight in GRID),
    *RATIO_METHODS,
    *(LINE, CURVE, LINE_AND_IMPLICIT, RAW, IMPLICIT, RANDOM, TRUTH, ALL),
]


@pytest.fixture(scope="module")
def trials():
    return list(run_trials(QUICK))


def made_up(gain_of, *, num_seeds=6, worlds=("one", "two")):
    """Trials with gains of our own making: gain_of(rule, world, seed)."""
    return [
        Trial(
            world=world,
            objective="simpo",
            optimiser="adam",
            fraction=0.4,
            seed=seed,
            gains={rule: gain_of(rule, world, seed) for rule in RULES},
            weights=dict.fromkeys(RATIO_METHODS, 0.5),
        )
        for world in worlds
        for seed in range(num_seeds)
    ]


def best_at_half(rule, world, seed):
    scale = {"one": 1.0, "two": 100.0}[world]
    return scale * ({grid_name(0.5): 1.0, "whitening": 0.95}.get(rule, 0.5) + 0.01 * seed)


def test_the_quick_study_is_the_same_twice(trials):
    again = list(run_trials(replace(QUICK, worlds=(QUICK.worlds[0],))))
    assert again == [trial for trial in trials if trial.world == QUICK.worlds[0]]


def test_the_quick_study_has_every_rule_in_every_cell(trials):
    assert all(set(trial.gains) == set(RULES) for trial in trials)
    assert len(trials) == len(QUICK.worlds) * QUICK.num_seeds * 2 * 2 * 2
    assert len({(t.world, t.objective, t.optimiser, t.fraction, t.seed) for t in trials}) == len(trials)


def test_the_truth_selects_better_than_chance(trials):
    gains = {rule: np.mean([trial.gains[rule] for trial in trials]) for rule in (TRUTH, RANDOM)}
    assert gains[TRUTH] > gains[RANDOM] > 0


def test_std_is_a_weight_of_one_on_z_scores():
    size = replace(QUICK, num_seeds=1, worlds=("clean",))
    trial = next(iter(run_trials(size)))
    assert trial.gains["std"] == trial.gains[grid_name(1.0)]
    assert trial.weights["std"] == pytest.approx(1.0, rel=1e-12)


def test_a_refused_method_stands_with_w_one_and_is_counted(trials):
    refused = [trial for trial in trials if trial.world == "on-policy"]
    assert all(trial.weights["bradley-terry"] is None for trial in refused)
    assert all(trial.gains["bradley-terry"] == trial.gains[grid_name(1.0)] for trial in refused)
    assert compare(trials).standing("bradley-terry").refused >= 1 / 3


def test_the_label_free_methods_refuse_nothing(trials):
    comparison = compare(trials)
    assert [m for m in RATIO_METHODS if m not in ("bradley-terry", "robust") and comparison.standing(m).refused] == []


def test_utility_counts_worlds_alike_whatever_their_gains():
    comparison = compare(made_up(best_at_half))
    assert comparison.best_fixed == grid_name(0.5)
    assert comparison.best_of_world == {"one": grid_name(0.5), "two": grid_name(0.5)}
    assert comparison.standing(grid_name(0.5)).utility.mean == pytest.approx(1.0)
    unit = 1.0 + 0.01 * 2.5
    assert comparison.standing("whitening").utility.mean == pytest.approx(0.975 / unit)


def test_differences_are_paired_by_seed():
    comparison = compare(made_up(best_at_half))
    standing = comparison.standing("whitening")
    assert standing.utility.high > standing.utility.low
    # The seeds move both alike, so nothing is left between them.
    assert standing.difference.mean == pytest.approx(-0.05 / 1.025)
    assert standing.difference.high - standing.difference.low == pytest.approx(0.0, abs=1e-12)
    assert standing.behind_in_world["two"].mean == pytest.approx(-0.05 / 1.025)


def test_one_seed_is_refused():
    with pytest.raises(DataError, match="two seeds"):
        compare(made_up(best_at_half, num_seeds=1))


def test_a_cell_with_other_seeds_is_refused():
    with pytest.raises(DataError, match="same two seeds"):
        compare(made_up(best_at_half)[:-1])


def test_a_world_in_which_nothing_gains_is_refused():
    with pytest.raises(DataError, match="no fixed weight gains"):
        compare(made_up(lambda rule, world, seed: -1.0))


def test_tables_have_every_method_and_intervals(trials):
    comparison = compare(trials)
    summary = table.summary_table(comparison).splitlines()
    cells = {line.split("|")[1].strip(): line.split("|") for line in summary[2:]}
    assert set(RATIO_METHODS) <= set(cells)
    assert all(cells[method][3].count("[") == cells[method][4].count("[") == 1 for method in RATIO_METHODS)
    assert sum("(best fixed)" in line for line in summary) == 1
    worlds = table.world_table(comparison).splitlines()
    assert [line.split("|")[1].strip() for line in worlds[2:]] == list(QUICK.worlds)
    assert all(method in worlds[0] for method in RATIO_METHODS)
    assert len({line.count("|") for line in summary}) == len({line.count("|") for line in worlds}) == 1
