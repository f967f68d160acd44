"""What each automatic ratio does to a real scored dataset: its w, and how the selection differs from the others'.

No truth is known here, so nothing is said of which is better.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from jobs.study.table import markdown
from jobs.study.trials import sample_of, top, weight_on_z_scores, zscore
from pipeline import schema
from pipeline.config import Objective, Storage
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import DataError
from pipeline.metrics.margins import explicit_margin, implicit_margin, objective_columns
from pipeline.metrics.potential import alignment_potential
from pipeline.metrics.ranks import spearman
from pipeline.metrics.ratio import RATIO_METHODS, RatioSample

EXPLICIT_ONLY: Final = "w = 0, explicit only"
NUM_RESAMPLES: Final = 200
_SEED: Final = 0
_INTERVAL: Final = (2.5, 97.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one method does; all but `weight` is empty where it refuses the data.

    weight: w on z-scores, and `weight_interval` its 95 % bootstrap interval over rows; None where it refuses the data.
    overlap: Jaccard index of its selection with that of each other method.
    rank_explicit, rank_implicit: Spearman correlation of the potential with the two margins that it weighs.
    contradicted: share of the selection whose rejected response has the higher reward.
    """

    weight: float | None
    weight_interval: tuple[float, float] | None = None
    overlap: Mapping[str, float] = field(default_factory=dict)
    rank_explicit: float | None = None
    rank_implicit: float | None = None
    contradicted: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """The effects on one dataset. num_left_out: rows without a finite margin."""

    path: str
    objective: str
    fraction: float
    num_rows: int
    num_left_out: int
    rank_margins: float
    contradicted: float
    by_method: Mapping[str, Effect]


def effects_of(path: str, objective: Objective, fraction: float) -> Effects:
    """The effects of every method on the scored dataset at a path or URL.

    Raises:
        AlignpotError: there is no complete scored dataset, it lacks columns, or it has no two rows to compare.
    """
    sample, num_left_out = _sample(path, objective)
    num_rows = len(sample.explicit)
    if int(fraction * num_rows) < 1:
        raise DataError(f"{path} has {num_rows} rows with both margins; {fraction:g} of them is none. Score more rows.")
    weights: dict[str, float | None] = {method: weight_on_z_scores(method, sample) for method in RATIO_METHODS}
    weights[EXPLICIT_ONLY] = 0.0
    terms = zscore(sample.explicit), zscore(sample.implicit)
    potentials = {name: alignment_potential(*terms, weight) for name, weight in weights.items() if weight is not None}
    selections = {name: set(top(potential, fraction).tolist()) for name, potential in potentials.items()}
    intervals = _intervals(sample)
    effects = {name: Effect(weight=None) for name in weights}
    for name, potential in potentials.items():
        rows = selections[name]
        others = {other: found for other, found in selections.items() if other != name}
        effects[name] = Effect(
            weight=weights[name],
            weight_interval=intervals.get(name),
            overlap={other: len(rows & found) / len(rows | found) for other, found in others.items()},
            rank_explicit=spearman(potential, sample.explicit),
            rank_implicit=spearman(potential, sample.implicit),
            contradicted=float(np.mean(sample.explicit_signed[sorted(rows)] < 0)),
        )
    return Effects(
        path=path,
        objective=objective.name,
        fraction=fraction,
        num_rows=num_rows,
        num_left_out=num_left_out,
        rank_margins=spearman(sample.explicit, sample.implicit),
        contradicted=float(np.mean(sample.explicit_signed < 0)),
        by_method=effects,
    )


def report(effects: Effects) -> str:
    """One dataset as Markdown."""
    methods = list(effects.by_method)
    header = ["method", "w", "contradicted", "rank corr. explicit", "rank corr. implicit", *methods]
    rows = []
    for name, effect in effects.by_method.items():
        if effect.weight is None:
            rows.append([name, "refused", *[""] * (len(header) - 2)])
            continue
        low_high = "" if effect.weight_interval is None else " [{:.2f}, {:.2f}]".format(*effect.weight_interval)
        overlaps = [f"{effect.overlap[other]:.2f}" if other in effect.overlap else "" for other in methods]
        numbers = [f"{effect.contradicted:.1%}", f"{effect.rank_explicit:+.2f}", f"{effect.rank_implicit:+.2f}"]
        rows.append([name, f"{effect.weight:.2f}{low_high}", *numbers, *overlaps])
    return (
        f"{effects.path}: {effects.num_rows} rows, {effects.num_left_out} left out, objective {effects.objective}, "
        f"{effects.fraction:.0%} selected. The reward contradicts {effects.contradicted:.1%} of all rows; rank "
        f"correlation of the margins {effects.rank_margins:+.2f}. w is on z-scores; the last columns are Jaccard "
        f"indices of the selections.\n\n{markdown(header, rows)}"
    )


def _sample(path: str, objective: Objective) -> tuple[RatioSample, int]:
    dataset = Dataset.open(Place.open(path, Storage()))
    columns = [schema.REWARD_CHOSEN, schema.REWARD_REJECTED, *objective_columns(objective)]
    parts = [(explicit_margin(t), implicit_margin(t, objective)) for t in dataset.tables(list(dict.fromkeys(columns)))]
    if not parts:
        raise DataError(f"{path} holds no scored rows.")
    explicit, implicit = (np.concatenate(column) for column in zip(*parts, strict=True))
    keep = np.isfinite(explicit) & np.isfinite(implicit)
    num_kept = int(np.count_nonzero(keep))
    if num_kept < 2:
        raise DataError(f"{path} has {num_kept} of {len(keep)} rows with both margins; wanted 2 or more.")
    return sample_of(explicit[keep], implicit[keep]), len(keep) - num_kept


def _intervals(sample: RatioSample) -> dict[str, tuple[float, float]]:
    """Percentiles of w over resampled rows, where a method gives one."""
    rng = np.random.default_rng(_SEED)
    num_rows = len(sample.explicit)
    found: dict[str, list[float]] = {}
    for _ in range(NUM_RESAMPLES):
        rows = rng.integers(0, num_rows, num_rows)
        resampled = sample_of(sample.explicit_signed[rows], sample.implicit_signed[rows])
        for method in RATIO_METHODS:
            weight = weight_on_z_scores(method, resampled)
            if weight is not None:
                found.setdefault(method, []).append(weight)
    bounds = {method: np.percentile(weights, _INTERVAL) for method, weights in found.items()}
    return {method: (float(low), float(high)) for method, (low, high) in bounds.items()}
