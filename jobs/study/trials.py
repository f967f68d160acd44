"""One world and one seed: score a pool of pairs, select from it by every rule, train on each selection, measure.

Utility is the gain in expected true reward, on prompts held out, by training on the selection.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, get_args

import numpy as np

from jobs.study.train import Optimiser, Rows, Training, loss_of, scored_table, train
from jobs.study.worlds import WORLDS, FloatArray, Pairs, draw_pairs, draw_prompts, draw_world, drawn_settings
from jobs.study.worlds import expected_true_reward as expected_reward
from pipeline.config import Objective
from pipeline.errors import DataError
from pipeline.metrics.length import gap_sums
from pipeline.metrics.margins import explicit_margin, implicit_margin, length_gap
from pipeline.metrics.potential import alignment_potential
from pipeline.metrics.ratio import RATIO_METHODS, RatioSample, automatic_ratio

GRID: Final = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0)
"""Fixed weights on z-scores that the methods are compared with; 0 ranks by the explicit margin alone."""

FALLBACK_WEIGHT: Final = 1.0
"""Weight on z-scores that is taken where a method refuses a sample: the config's own default."""

OBJECTIVES: Final = (Objective(name="dpo", beta=0.1), Objective(name="simpo", beta=2.0))
DRAWN: Final = "drawn at random"
RANDOM, IMPLICIT, RAW, ALL, TRUTH = "random", "implicit only", "w = 1, not z-scored", "all pairs", "true margin"
LINE, LINE_AND_IMPLICIT = "w = 0, length: residual", "w = 1, length: residual"
CURVE = "w = 0, length: residual_monotone"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySize:
    """How much is simulated. Seeds are first_seed, first_seed + 1, ..."""

    num_seeds: int = 40
    first_seed: int = 1000
    num_pairs: int = 2000
    num_warm_pairs: int = 1000
    num_held_out: int = 500
    num_steps: int = 80
    fractions: tuple[float, ...] = (0.4, 0.1)
    worlds: tuple[str, ...] = (*WORLDS, DRAWN)


QUICK: Final = StudySize(
    num_seeds=2, num_pairs=400, num_warm_pairs=200, num_held_out=100, num_steps=20, worlds=("clean", "on-policy", DRAWN)
)
"""Enough to see that it works; its numbers say little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one world, objective, optimiser, fraction and seed gave.

    gains: expected true reward after training minus before, by rule.
    weights: w on z-scores of each automatic method; None where it refused the sample.
    """

    world: str
    objective: str
    optimiser: Optimiser
    fraction: float
    seed: int
    gains: Mapping[str, float]
    weights: Mapping[str, float | None]


def grid_name(weight: float) -> str:
    """How a fixed weight on z-scores is called in results."""
    return f"w = {weight:g}"


def run_trials(size: StudySize) -> Iterator[Trial]:
    """All trials; the same size gives the same trials."""
    for world in size.worlds:
        for seed in range(size.first_seed, size.first_seed + size.num_seeds):
            for objective in OBJECTIVES:
                yield from trials_of(world, objective, seed, size)


def trials_of(world_name: str, objective: Objective, seed: int, size: StudySize) -> Iterator[Trial]:
    """The trials of one world, objective and seed, over fractions and optimisers."""
    rng = np.random.default_rng([seed, zlib.crc32(world_name.encode())])
    world = draw_world(drawn_settings(rng) if world_name == DRAWN else WORLDS[world_name], rng)
    settings, reference = world.settings, world.first_policy
    warm_world = replace(world, settings=replace(settings, candidates=0))
    warm_pairs = draw_pairs(warm_world, reference, size.num_warm_pairs, rng, settings.warm_topics)
    warm_up = Training(num_steps=settings.warm_steps)
    warm_loss = loss_of(warm_pairs, objective, reference)
    policy = train(reference, warm_loss, [np.arange(size.num_warm_pairs)], warm_up, seed)[0]
    pool = draw_pairs(world, policy, size.num_pairs, rng)
    held_out = draw_prompts(size.num_held_out, rng)

    scores, weights = scores_of(pool, policy, reference, objective, rng)
    loss = loss_of(pool, objective, reference)
    keys = [(name, fraction) for fraction in size.fractions for name in scores]
    selections = [np.arange(size.num_pairs), *(top(scores[name], fraction) for name, fraction in keys)]
    before = float(expected_reward(world, policy, held_out))
    for optimiser in get_args(Optimiser):
        training = Training(num_steps=size.num_steps, optimiser=optimiser)
        after = expected_reward(world, train(policy, loss, selections, training, seed), held_out)
        gains = dict(zip([(ALL, 1.0), *keys], (after - before).tolist(), strict=True))
        for fraction in size.fractions:
            yield Trial(
                world=world_name,
                objective=objective.name,
                optimiser=optimiser,
                fraction=fraction,
                seed=seed,
                gains={ALL: gains[ALL, 1.0], **{name: gains[name, fraction] for name in scores}},
                weights=weights,
            )


def scores_of(
    pool: Pairs, policy: FloatArray, reference: FloatArray, objective: Objective, rng: np.random.Generator
) -> tuple[dict[str, FloatArray], dict[str, float | None]]:
    """Score of every pair by every rule, and w on z-scores of the automatic methods."""
    table = scored_table(pool, policy, reference)
    sample = sample_of(explicit_margin(table), implicit_margin(table, objective))
    weights = {method: weight_on_z_scores(method, sample) for method in RATIO_METHODS}
    rules = {grid_name(weight): weight for weight in GRID} | {
        method: FALLBACK_WEIGHT if weight is None else weight for method, weight in weights.items()
    }
    z_explicit, z_implicit = zscore(sample.explicit), zscore(sample.implicit)
    scores = {name: alignment_potential(z_explicit, z_implicit, weight) for name, weight in rules.items()}
    gaps = length_gap(table)
    sums = gap_sums(sample.explicit, gaps)
    scores[LINE] = sample.explicit - sums.line().of(gaps)
    scores[CURVE] = sample.explicit - sums.curve().of(gaps)
    scores[LINE_AND_IMPLICIT] = alignment_potential(zscore(scores[LINE]), z_implicit, 1.0)
    scores[RAW] = alignment_potential(sample.explicit, sample.implicit, 1.0)
    scores[IMPLICIT] = -sample.implicit
    scores[RANDOM] = rng.random(len(sample.explicit))
    scores[TRUTH] = pool.margin_true
    return scores, {str(method): weight for method, weight in weights.items()}


def sample_of(explicit: FloatArray, implicit: FloatArray) -> RatioSample:
    """The sample of rows with these signed margins, as the potential takes them by default."""
    return RatioSample(explicit=explicit, implicit=np.abs(implicit), explicit_signed=explicit, implicit_signed=implicit)


def weight_on_z_scores(method: str, sample: RatioSample) -> float | None:
    """The w of a method in units of z-scores; None where it refuses the sample."""
    try:
        ratio = automatic_ratio(method, sample)
    except DataError:
        return None
    return ratio * float(sample.implicit.std() / sample.explicit.std())


def zscore(values: FloatArray) -> FloatArray:
    """Values less their mean, over their standard deviation."""
    scaled: FloatArray = (values - values.mean()) / values.std()
    return scaled


def top(scores: FloatArray, fraction: float) -> Rows:
    """Rows of the highest scores, in the order of rows; ties go to the first row."""
    return np.sort(np.argsort(-scores, kind="stable")[: int(fraction * len(scores))])
