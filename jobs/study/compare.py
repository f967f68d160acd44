"""Trials of many worlds and seeds made comparable: utility, intervals over seeds, paired differences.

A cell is a world, an objective, an optimiser and a fraction. The unit of utility in a cell is the gain of the fixed
weight that is best there, on the mean over seeds: 1 is what tuning w by hand in that very cell gives, in hindsight.
So cells of large and small gains count alike. Intervals are of 95 %, by Student's t over seeds, each of
which draws every world anew.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from jobs.study.train import Optimiser
from jobs.study.trials import GRID, Trial, grid_name
from jobs.study.worlds import FloatArray
from pipeline.errors import DataError
from pipeline.metrics.intervals import Interval, interval

Cell: TypeAlias = tuple[str, str, Optimiser, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What one rule gave.

    utility: mean over all cells.
    difference: the same minus that of the best fixed weight, on the same seeds.
    by_world: mean utility in each world; `behind_in_world`: the same minus that of the fixed weight best in that world.
    by_setting: mean utility for each objective, optimiser and fraction.
    weight: mean w on z-scores of an automatic method, where it gave one.
    refused: share of the samples that an automatic method refused.
    """

    rule: str
    utility: Interval
    difference: Interval
    by_world: dict[str, float]
    behind_in_world: dict[str, Interval]
    by_setting: dict[str, float]
    weight: float | None
    refused: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All standings, in the order of the trials.

    best_fixed: the fixed weight with the highest mean utility over all cells, known in hindsight.
    best_of_world: the same for every world.
    """

    num_seeds: int
    best_fixed: str
    best_of_world: dict[str, str]
    standings: tuple[Standing, ...]

    def standing(self, rule: str) -> Standing:
        """The standing of a rule."""
        return next(standing for standing in self.standings if standing.rule == rule)


def compare(trials: Sequence[Trial]) -> Comparison:
    """Compare the rules over all trials; every cell must have the same seeds, two or more.

    Raises:
        DataError: there are fewer seeds, or no fixed weight gains anything in some cell.
    """
    utilities, cells = _utilities(trials)
    num_seeds = next(iter(utilities.values())).shape[1]
    fixed = [grid_name(weight) for weight in GRID]
    best_fixed = _best(utilities, fixed, np.ones(len(cells), dtype=bool))
    worlds = {name: np.array([cell[0] == name for cell in cells]) for name in dict.fromkeys(c[0] for c in cells)}
    settings = {
        str(name): np.array([cell[place] == name for cell in cells])
        for place in (1, 2, 3)
        for name in dict.fromkeys(cell[place] for cell in cells)
    }
    best_of_world = {name: _best(utilities, fixed, mask) for name, mask in worlds.items()}
    standings = [
        Standing(
            rule=rule,
            utility=interval(values.mean(axis=0)),
            difference=interval((values - utilities[best_fixed]).mean(axis=0)),
            by_world={name: float(values[mask].mean()) for name, mask in worlds.items()},
            behind_in_world={
                name: interval((values - utilities[best_of_world[name]])[mask].mean(axis=0))
                for name, mask in worlds.items()
            },
            by_setting={name: float(values[mask].mean()) for name, mask in settings.items()},
            weight=_mean_weight(trials, rule),
            refused=_refused(trials, rule),
        )
        for rule, values in utilities.items()
    ]
    return Comparison(
        num_seeds=num_seeds,
        best_fixed=best_fixed,
        best_of_world=best_of_world,
        standings=tuple(standings),
    )


def _utilities(trials: Sequence[Trial]) -> tuple[dict[str, FloatArray], list[Cell]]:
    """Utility of each rule, [num_cells, num_seeds], and the cells."""
    by_cell: dict[Cell, list[Trial]] = {}
    for trial in trials:
        cell = (trial.world, trial.objective, trial.optimiser, trial.fraction)
        by_cell.setdefault(cell, []).append(trial)
    seeds = [sorted(trial.seed for trial in found) for found in by_cell.values()]
    if not seeds or len(seeds[0]) < 2 or any(other != seeds[0] for other in seeds):
        raise DataError("a comparison needs the same two seeds or more in every cell. Raise the number of seeds.")
    rows: dict[str, list[FloatArray]] = {}
    for cell, found in by_cell.items():
        found.sort(key=lambda trial: trial.seed)
        gains = {rule: np.array([trial.gains[rule] for trial in found]) for rule in found[0].gains}
        unit = max(float(gains[grid_name(weight)].mean()) for weight in GRID)
        if not unit > 0:
            raise DataError(f"no fixed weight gains true reward in {cell}. Train for longer or on more pairs.")
        for rule, values in gains.items():
            rows.setdefault(rule, []).append(values / unit)
    return {rule: np.stack(values) for rule, values in rows.items()}, list(by_cell)


def _best(utilities: dict[str, FloatArray], rules: list[str], cells: npt.NDArray[np.bool_]) -> str:
    return max(rules, key=lambda rule: float(utilities[rule][cells].mean()))


def _mean_weight(trials: Sequence[Trial], rule: str) -> float | None:
    given = [weight for trial in trials if (weight := trial.weights.get(rule)) is not None]
    return statistics.fmean(given) if given else None


def _refused(trials: Sequence[Trial], rule: str) -> float:
    return statistics.fmean(rule in trial.weights and trial.weights[rule] is None for trial in trials)
