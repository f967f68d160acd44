"""Intervals, corrections and power of the training study, on outcomes whose truth is known."""

import math

import numpy as np
import pytest

from jobs.study import evidence

NUM_SEEDS, NUM_PROMPTS = 8, 32


def wins(rng, rate=0.5, spread=0.05):
    """Wins as the analysis plan supposes them: coins, whose rate each seed moves."""
    rates = rate + spread * rng.normal(size=(NUM_SEEDS, 1))
    return (rng.random((NUM_SEEDS, NUM_PROMPTS)) < rates).astype(float)


def test_two_implementations_of_the_interval_agree():
    rng = np.random.default_rng(0)
    for rate in (0.2, 0.5, 0.8):
        values = wins(rng, rate)
        values[0, 3] = math.nan  # an answer without a reward
        first, second = evidence.bootstrap_interval(values), evidence.student_interval(values.tolist())
        assert first.mean == pytest.approx(second.mean, abs=1e-12)
        width = second.high - second.low
        assert first.low == pytest.approx(second.low, abs=0.1 * width)
        assert first.high == pytest.approx(second.high, abs=0.1 * width)


def test_a_planted_effect_is_found_with_the_stated_power_and_a_planted_null_is_not():
    rng = np.random.default_rng(1)
    spread = math.sqrt(2 * (0.05**2 + 0.25 / NUM_PROMPTS))  # of the difference of two arms
    effect = evidence.detectable(spread, NUM_SEEDS)
    assert effect == pytest.approx(0.17, abs=0.005)  # as the plan says
    assert evidence.detectable(spread, NUM_SEEDS, 14) == pytest.approx(0.26, abs=0.005)
    found = {
        planted: np.mean([evidence.p_value(wins(rng, 0.5 + planted) - wins(rng)) < 0.05 for _ in range(500)])
        for planted in (0.0, effect)
    }
    assert found[0.0] == pytest.approx(0.05, abs=0.03)
    assert found[effect] == pytest.approx(0.8, abs=0.06)


def test_p_values_are_those_of_students_t():
    difference = np.array([[1.0], [2.0], [3.0]])  # t = 2 / (1 / sqrt(3)) with 2 degrees of freedom
    assert evidence.p_value(difference) == pytest.approx(0.0742, abs=1e-4)
    assert evidence.p_value(np.zeros((3, 4))) == 1.0


def test_holm_multiplies_by_the_tests_that_are_left_and_never_falls():
    assert evidence.holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})


def test_ties_count_a_half_and_an_empty_answer_loses():
    after, before = (
        np.array([[2.0, 1.0, 1.0, math.nan, 0.0, math.nan]]),
        np.array([[1.0, 2.0, 1.0, 0.0] + [math.nan] * 2]),
    )
    assert evidence.wins(after, before).tolist() == [[1.0, 0.0, 0.5, 0.0, 1.0, 0.5]]
