"""Ranks with ties, and the correlation of two orders."""

import numpy as np
import pytest

from pipeline.metrics.ranks import average_ranks, spearman


def test_equal_values_share_the_mean_of_their_ranks():
    assert average_ranks(np.array([5.0, 1, 5, 2])).tolist() == [2.5, 0, 2.5, 1]


def test_spearman_shares_ranks_between_equal_values():
    # By hand: ranks 1.5 1.5 3 4 against 1 2 3.5 3.5.
    assert spearman(np.array([1.0, 1, 2, 3]), np.array([0.0, 1, 5, 5])) == pytest.approx(8 / 9)


def test_spearman_sees_the_order_alone():
    values = np.array([3.0, 1, 2])
    assert spearman(values, np.exp(values)) == pytest.approx(1.0)
    assert spearman(values, -values) == pytest.approx(-1.0)


def test_spearman_of_one_value_over_and_over_is_none():
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))
