from dataclasses import replace

import numpy as np
import pytest

from jobs.study.worlds import (
    WORLDS,
    World,
    WorldSettings,
    draw_pairs,
    draw_prompts,
    draw_world,
    drawn_settings,
    expected_true_reward,
    log_softmax,
)


def pairs_of(settings: WorldSettings, *, seed=0, num_pairs=4000):
    rng = np.random.default_rng(seed)
    world: World = draw_world(settings, rng)
    return world, draw_pairs(world, world.first_policy, num_pairs, rng)


def agreement(pairs):
    """Share of labels that the true reward confirms."""
    return float((pairs.margin_true > 0).mean())


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_is_the_same_from_the_same_seed(name):
    first, second = (pairs_of(WORLDS[name], num_pairs=50)[1] for _ in range(2))
    assert all(np.array_equal(getattr(first, field), getattr(second, field)) for field in first.__dataclass_fields__)


def test_labels_follow_the_truth_and_flips_spoil_them():
    decided = agreement(pairs_of(WorldSettings(decisiveness=20.0))[1])
    usual = agreement(pairs_of(WorldSettings())[1])
    flipped = agreement(pairs_of(WorldSettings(flips=0.25))[1])
    assert decided > 0.93 > usual > 0.65
    assert flipped == pytest.approx(0.75 * usual + 0.25 * (1 - usual), abs=0.03)


def test_a_noisy_reward_says_less_of_the_truth():
    def correlation(name):
        pairs = pairs_of(WORLDS[name])[1]
        return np.corrcoef(pairs.reward_chosen - pairs.reward_rejected, pairs.margin_true)[0, 1]

    assert correlation("clean") > 0.97
    assert correlation("noisy reward") < 0.6


def test_reward_scale_multiplies_the_seen_rewards_alone():
    usual, scaled = (pairs_of(WorldSettings(reward_scale=scale))[1] for scale in (1.0, 10.0))
    assert scaled.reward_chosen == pytest.approx(10 * usual.reward_chosen, rel=1e-12)
    assert np.array_equal(scaled.margin_true, usual.margin_true)


def test_length_bias_pays_for_tokens():
    def correlation(bias):
        pairs = pairs_of(WorldSettings(length_bias=bias))[1]
        return np.corrcoef(pairs.reward_chosen, np.log(pairs.counts_chosen.sum(axis=1)))[0, 1]

    assert abs(correlation(0.0)) < 0.1
    assert correlation(1.0) > 0.4


def test_pairs_on_policy_are_labelled_by_the_reward():
    pairs = pairs_of(WORLDS["on-policy"])[1]
    assert (pairs.reward_chosen > pairs.reward_rejected).all()
    assert 0.5 < agreement(pairs) < 1.0


def test_warm_pairs_of_one_topic_tell_nothing_of_the_other():
    rng = np.random.default_rng(0)
    one, two = draw_prompts(500, rng, 1), draw_prompts(500, rng, 2)
    assert not one[:, 4:].any()
    assert ((two[:, :4] != 0).any(axis=1) != (two[:, 4:] != 0).any(axis=1)).all()


def test_expected_true_reward_is_the_mean_of_what_the_policy_writes():
    rng = np.random.default_rng(1)
    world = draw_world(WorldSettings(alignment=0.5), rng)
    prompts = draw_prompts(20, rng)
    probabilities = np.exp(log_softmax(prompts @ world.first_policy))
    written = np.stack([rng.multinomial(20_000, p) for p in probabilities]) / 20_000
    sampled = (written * (prompts @ world.worth)).sum(axis=1).mean()
    assert expected_true_reward(world, world.first_policy, prompts) == pytest.approx(sampled, abs=0.01)


def test_an_aligned_first_policy_writes_better():
    rng = np.random.default_rng(2)
    world = draw_world(WorldSettings(alignment=1.0), rng)
    prompts = draw_prompts(100, rng)
    policies = np.stack([world.language, world.first_policy])
    language, aligned = expected_true_reward(world, policies, prompts)
    assert aligned > language + 0.3


def test_drawn_worlds_differ():
    drawn = {drawn_settings(np.random.default_rng(seed)) for seed in range(20)}
    assert len(drawn) == 20
    assert {settings.candidates for settings in drawn} == {0, 5}
    assert all(replace(settings, reward_scale=1.0) != WorldSettings() for settings in drawn)
