"""Simulated preference worlds in which the value of training on a pair is known.

A language of 24 tokens. A prompt is a vector h of features; a policy writes every token of a response independently
from softmax(h W), so that its log-probabilities, lengths and gradients are those of a real, if tiny, language model.
The true reward of a response is the mean worth h U of its tokens, which makes the expected true reward of a policy
exact. Responses come from many styles, good and bad. The reward model sees the true reward with errors; labels are
drawn by Bradley and Terry's model from the truth, and some are flipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

NUM_TOKENS: Final = 24
NUM_FEATURES: Final = 8
_LENGTHS: Final = (6, 80)

Rng: TypeAlias = np.random.Generator
FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSettings:
    """What makes a world; amounts are in standard deviations of the true reward over responses.

    reward_noise: error of the reward model that is new for every response.
    reward_error: error that follows the tokens, so that a policy can learn it.
    length_bias: reward for a response one standard deviation of log length longer.
    good_is_long: how much longer good writers write, in standard deviations of log length for each of their quality.
    reward_scale: factor on the seen rewards.
    flips: share of labels turned round after the draw.
    decisiveness: log-odds of the label for one unit of true margin.
    alignment: how far the first policy favours worthy tokens.
    warm_steps: steps of preference training, on other pairs, that the policy has behind it.
    warm_topics: how many of the two topics those pairs were about.
    candidates: 0 for pairs of two styles, labelled; K for the best and worst, by the seen reward, of K responses that
        the policy itself wrote.
    """

    reward_noise: float = 0.5
    reward_error: float = 0.3
    length_bias: float = 0.0
    good_is_long: float = 0.0
    reward_scale: float = 1.0
    flips: float = 0.0
    decisiveness: float = 1.5
    alignment: float = 0.3
    warm_steps: int = 40
    warm_topics: int = 2
    candidates: int = 0


WORLDS: Final[Mapping[str, WorldSettings]] = {
    "clean": WorldSettings(reward_noise=0.1, reward_error=0.0, decisiveness=4.0),
    "noisy reward": WorldSettings(reward_noise=1.5, reward_error=0.6),
    "flipped labels": WorldSettings(flips=0.25),
    "reward x 10": WorldSettings(reward_scale=10.0),
    "reward / 10": WorldSettings(reward_scale=0.1),
    "length bias": WorldSettings(length_bias=1.0),
    "good is long": WorldSettings(good_is_long=1.0),
    "young policy": WorldSettings(alignment=0.0, warm_steps=10),
    "aligned policy": WorldSettings(alignment=1.0, warm_steps=160),
    "half mastered": WorldSettings(warm_steps=1000, warm_topics=1),
    "on-policy": WorldSettings(candidates=5),
}


def drawn_settings(rng: Rng) -> WorldSettings:
    """Settings at random over and between those of WORLDS, so that no method can be made for them."""
    return WorldSettings(
        reward_noise=float(rng.uniform(0.1, 1.5)),
        reward_error=float(rng.uniform(0.0, 0.6)),
        length_bias=float(rng.choice([0.0, 0.0, rng.uniform(-1.0, 1.0)])),
        reward_scale=float(10 ** rng.uniform(-1, 1)),
        flips=float(rng.choice([0.0, rng.uniform(0.0, 0.3)])),
        decisiveness=float(rng.uniform(1.0, 4.0)),
        alignment=float(rng.uniform(0.0, 1.0)),
        warm_steps=int(10 ** rng.uniform(1, 3)),
        warm_topics=int(rng.choice([1, 2])),
        candidates=int(rng.choice([0, 0, 5])),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Preference pairs of a world.

    prompts: features, [num_pairs, num_features].
    counts_chosen, counts_rejected: how often each token stands in a response, [num_pairs, num_tokens].
    reward_chosen, reward_rejected: as the reward model sees them, [num_pairs].
    margin_true: true reward of chosen minus that of rejected, [num_pairs].
    """

    prompts: FloatArray
    counts_chosen: FloatArray
    counts_rejected: FloatArray
    reward_chosen: FloatArray
    reward_rejected: FloatArray
    margin_true: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything but the pairs; arrays are [num_features, num_tokens].

    worth: true reward of each token, given the features.
    seen_error: what the reward model adds to it, before `reward_error`.
    language: logits of the language that all writers share.
    first_policy: logits of the policy before any preference training; the reference of DPO.
    """

    settings: WorldSettings
    worth: FloatArray
    seen_error: FloatArray
    language: FloatArray
    first_policy: FloatArray
    unit: float  # standard deviation of the true reward over responses


def draw_world(settings: WorldSettings, rng: Rng) -> World:
    """A world of these settings."""
    worth, error, language = (rng.normal(size=(NUM_FEATURES, NUM_TOKENS)) for _ in range(3))
    world = World(
        settings=settings,
        worth=worth,
        seen_error=error,
        language=language,
        first_policy=language + settings.alignment * worth,
        unit=1.0,
    )
    prompts = draw_prompts(2000, rng)
    rewards = true_rewards(world, prompts, _write(*_styles(world, prompts, rng), rng))
    return replace(world, unit=float(rewards.std()))


def draw_prompts(num_prompts: int, rng: Rng, num_topics: int = 2) -> FloatArray:
    """Features of prompts on either topic, [num_prompts, num_features], each of length about 1.

    A topic has half of the features, a constant one and normal others: what is learned of one tells nothing of the
    other.
    """
    size = NUM_FEATURES // 2
    features = rng.normal(size=(num_prompts, size)) / np.sqrt(2 * size)
    features[:, 0] = np.sqrt(0.5)
    topic = rng.integers(0, num_topics, num_prompts)[:, None]
    return np.concatenate([features * (topic == 0), features * (topic == 1)], axis=1)


def draw_pairs(world: World, policy: FloatArray, num_pairs: int, rng: Rng, num_topics: int = 2) -> Pairs:
    """Labelled pairs of two styles, or best and worst of K responses of the policy."""
    prompts = draw_prompts(num_pairs, rng, num_topics)
    rows = np.arange(num_pairs)
    if world.settings.candidates:
        logits = prompts @ policy
        counts = np.stack([_write(logits, np.zeros(num_pairs), rng) for _ in range(world.settings.candidates)])
    else:
        counts = np.stack([_write(*_styles(world, prompts, rng), rng) for _ in range(2)])
    true = np.stack([true_rewards(world, prompts, part) for part in counts])
    seen = np.stack([_seen_rewards(world, prompts, part, rng) for part in counts])
    if world.settings.candidates:
        chosen, rejected = seen.argmax(axis=0), seen.argmin(axis=0)
    else:
        chosen = _labels(world, true, rng)
        rejected = 1 - chosen
    return Pairs(
        prompts=prompts,
        counts_chosen=counts[chosen, rows],
        counts_rejected=counts[rejected, rows],
        reward_chosen=seen[chosen, rows],
        reward_rejected=seen[rejected, rows],
        margin_true=true[chosen, rows] - true[rejected, rows],
    )


def true_rewards(world: World, prompts: FloatArray, counts: FloatArray) -> FloatArray:
    """Mean worth of the tokens of each response, [num_responses]."""
    return _mean_over_tokens(prompts @ world.worth, counts)


def expected_true_reward(world: World, policy: FloatArray, prompts: FloatArray) -> FloatArray:
    """Mean over prompts of the exact expectation under the policy; policy may be a stack [..., features, tokens]."""
    probabilities = np.exp(log_softmax(prompts @ policy))
    expected: FloatArray = (probabilities * (prompts @ world.worth)).sum(axis=-1).mean(axis=-1)
    return expected


def log_softmax(logits: FloatArray) -> FloatArray:
    """Log-probabilities of tokens from logits, along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logps: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logps


def _mean_over_tokens(per_token: FloatArray, counts: FloatArray) -> FloatArray:
    mean: FloatArray = (counts * per_token).sum(axis=1) / counts.sum(axis=1)
    return mean


def _styles(world: World, prompts: FloatArray, rng: Rng) -> tuple[FloatArray, FloatArray]:
    """Logits of writers of every quality, one a response, and how much longer each of them writes."""
    num = len(prompts)
    quality = rng.normal(0.0, 0.6, (num, 1))
    habit = rng.normal(0.0, 0.7, (num, NUM_TOKENS))
    longer = world.settings.good_is_long * quality[:, 0] / 0.6
    return prompts @ world.language + quality * (prompts @ world.worth) + habit, longer


def _write(logits: FloatArray, longer: FloatArray, rng: Rng) -> FloatArray:
    log_lengths = rng.normal(3.2, 0.5, len(logits)) + 0.5 * longer
    lengths = np.clip(np.exp(log_lengths), *_LENGTHS).astype(np.int64)
    probabilities = np.exp(log_softmax(logits))
    return rng.multinomial(lengths, probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float64)


def _seen_rewards(world: World, prompts: FloatArray, counts: FloatArray, rng: Rng) -> FloatArray:
    settings = world.settings
    seen_worth = prompts @ (world.worth + settings.reward_error * world.seen_error)
    seen = _mean_over_tokens(seen_worth, counts) + rng.normal(0.0, settings.reward_noise * world.unit, len(counts))
    seen += settings.length_bias * world.unit * (np.log(counts.sum(axis=1)) - 3.2) / 0.5
    return settings.reward_scale * seen


def _labels(world: World, true: FloatArray, rng: Rng) -> npt.NDArray[np.int64]:
    log_odds = world.settings.decisiveness * (true[1] - true[0]) / world.unit
    second = rng.random(log_odds.size) < 1.0 / (1.0 + np.exp(-log_odds))
    flipped = rng.random(log_odds.size) < world.settings.flips
    chosen: npt.NDArray[np.int64] = (second ^ flipped).astype(np.int64)
    return chosen
