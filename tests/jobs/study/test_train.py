from dataclasses import replace

import numpy as np
import pytest

from jobs.study.train import Training, _gradient, loss_of, scored_table, train
from jobs.study.trials import OBJECTIVES
from jobs.study.worlds import WorldSettings, draw_pairs, draw_prompts, draw_world, expected_true_reward
from pipeline.metrics.margins import implicit_margin

OBJECTIVE_IDS = [objective.name for objective in OBJECTIVES]
each_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=OBJECTIVE_IDS)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    world = draw_world(WorldSettings(alignment=0.1), rng)
    policy = world.first_policy + 0.2 * rng.normal(size=world.worth.shape)
    return world, policy, draw_pairs(world, policy, 600, rng), draw_prompts(200, rng)


@each_objective
def test_the_margin_that_is_trained_is_the_margin_that_is_scored(objective, drawn):
    world, policy, pairs, _ = drawn
    scored = implicit_margin(scored_table(pairs, policy, world.first_policy), objective)
    assert loss_of(pairs, objective, world.first_policy).margins(policy) == pytest.approx(scored, rel=1e-9, abs=1e-9)
    assert scored.std() > 0


@each_objective
def test_gradient_is_that_of_the_mean_loss(objective, drawn):
    world, policy, pairs, _ = drawn
    loss = loss_of(pairs, objective, world.first_policy)
    batch = np.arange(16)

    def mean_loss(at):
        return np.logaddexp(0.0, loss.target - loss.margins(at)[batch]).mean()

    gradient = _gradient(policy[None], loss, batch[None])[0]
    direction = np.random.default_rng(1).normal(size=policy.shape)
    step = 1e-5
    slope = (mean_loss(policy + step * direction) - mean_loss(policy - step * direction)) / (2 * step)
    assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6)


@each_objective
@pytest.mark.parametrize("optimiser", ["adam", "descent"])
def test_training_on_pairs_the_truth_confirms_improves_the_true_reward(objective, optimiser, drawn):
    world, policy, pairs, prompts = drawn
    loss = loss_of(pairs, objective, world.first_policy)
    right, wrong = np.flatnonzero(pairs.margin_true > 0), np.flatnonzero(pairs.margin_true < 0)
    trained = train(policy, loss, [right, wrong], Training(optimiser=optimiser), seed=0)
    before = expected_true_reward(world, policy, prompts)
    after_right, after_wrong = expected_true_reward(world, trained, prompts)
    assert after_right > before + 0.05
    assert after_wrong < before


@each_objective
def test_training_lowers_the_loss_on_its_rows(objective, drawn):
    world, policy, pairs, _ = drawn
    loss = loss_of(pairs, objective, world.first_policy)
    rows = np.arange(100)
    trained = train(policy, loss, [rows], Training(num_steps=100), seed=0)[0]
    assert loss.margins(trained)[rows].mean() > loss.margins(policy)[rows].mean() + 0.1


def test_a_run_is_the_same_alone_and_in_a_stack(drawn):
    world, policy, pairs, _ = drawn
    loss = loss_of(pairs, OBJECTIVES[0], world.first_policy)
    selections = [np.arange(50), np.arange(50, 300)]
    stacked = train(policy, loss, selections, Training(num_steps=20), seed=3)
    alone = [train(policy, loss, [rows], Training(num_steps=20), seed=3)[0] for rows in selections]
    assert stacked == pytest.approx(np.stack(alone), rel=1e-9, abs=1e-12)


def test_adam_moves_on_by_its_step_where_the_gradient_is_small(drawn):
    world, policy, pairs, _ = drawn
    loss = loss_of(pairs, OBJECTIVES[1], world.first_policy)
    learned = replace(loss, target=-10.0)  # all margins lie far above the target, so the gradient is tiny
    moved = {
        optimiser: np.abs(
            train(policy, learned, [np.arange(600)], Training(num_steps=5, optimiser=optimiser), 0) - policy
        )
        for optimiser in ("adam", "descent")
    }
    assert moved["adam"].max() > 0.05
    assert moved["descent"].max() < 0.01
