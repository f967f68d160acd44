"""Intervals cover what they say they cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.intervals import interval, share_interval, student_t


def test_interval_covers_the_mean_19_times_of_20():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 8))
    found = [interval(row) for row in draws]
    covered = np.mean([one.low <= 3.0 <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(("degrees", "expected"), [(4, 2.7764), (9, 2.2622), (19, 2.0930), (39, 2.0227)])
def test_quantiles_of_student_t(degrees, expected):
    assert student_t(degrees) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("wins", "num", "low", "high"),
    # Newcombe (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_share_interval_is_wilsons(wins, num, low, high):
    found = share_interval(np.array([1.0] * wins + [0.0] * (num - wins)))
    assert (found.mean, found.low, found.high) == pytest.approx((wins / num, low, high), abs=5e-5)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=50))
def test_share_interval_turns_with_the_shares(shares):
    found, turned = share_interval(np.array(shares)), share_interval(1 - np.array(shares))
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert (turned.low, turned.high) == pytest.approx((1 - found.high, 1 - found.low))
