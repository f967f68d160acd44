"""What makes margins comparable keeps their order, and comes back from JSON to the bit."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.metrics.fitted import Fitted, fitted_of
from pipeline.metrics.normalise import (
    CONSISTENCY,
    Ranks,
    Scale,
    bucket_edge,
    checked_scale,
    normaliser_of,
    rank_buckets,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
EXTREMES = st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 2.0**-1022, 1.0, -1.0, 1.7976931348623157e308, -1.7e308])
VALUES = st.lists(FINITE | EXTREMES | st.floats(-3, 3), min_size=1, max_size=60)


def ranks_of(values) -> Ranks:
    buckets, counts = np.unique(rank_buckets(np.array(values)), return_counts=True)
    return Ranks(buckets=buckets, counts=counts)


def average_ranks(values) -> np.ndarray:
    """Share of the rows below each value, half of its own ties among them."""
    ordered = np.sort(values)
    below, up_to = np.searchsorted(ordered, values), np.searchsorted(ordered, values, side="right")
    return (below + up_to) / (2 * len(values))


DRAWS = {
    "normal": lambda rng, n: rng.normal(3.0, 2.0, n),
    "heavy": lambda rng, n: rng.standard_t(2, n),
    "magnitudes": lambda rng, n: np.abs(rng.normal(size=n)),
    "tiny": lambda rng, n: rng.normal(size=n) * 1e-200,
}


@pytest.mark.parametrize("draw", DRAWS)
def test_ranks_are_the_average_ranks_to_a_thousandth(draw):
    values = DRAWS[draw](np.random.default_rng(0), 50_000)
    assert np.abs(ranks_of(values).apply(values) - average_ranks(values)).max() < 1e-3


@given(VALUES, VALUES)
def test_ranks_keep_the_order_and_lie_between_0_and_1(fitted, values):
    ordered = np.sort(np.array([*fitted, *values]) + 0.0)
    ranks = ranks_of(fitted).apply(ordered)
    assert (np.diff(ranks) >= 0).all()
    assert ranks[0] >= 0
    assert ranks[-1] <= 1


@given(VALUES, st.integers(0, 59))
def test_equal_values_have_equal_ranks_even_with_zeros_of_both_signs(values, place):
    value = values[place % len(values)]
    ranks = ranks_of(values).apply(np.array([value, value, 0.0, -0.0]))
    assert ranks[0] == ranks[1]
    assert ranks[2] == ranks[3]


@given(VALUES)
def test_the_rank_of_a_value_counts_all_rows_of_lower_buckets_and_none_of_higher_ones(values):
    array = np.array(values) + 0.0
    buckets, ranks = rank_buckets(array), ranks_of(values).apply(array)
    below = np.array([(buckets < bucket).mean() for bucket in buckets])
    up_to = np.array([(buckets <= bucket).mean() for bucket in buckets])
    assert (below - 1e-15 <= ranks).all()
    assert (ranks <= up_to + 1e-15).all()


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30))
def test_values_outside_what_was_seen_rank_first_or_last(values):
    low, high = min(values), max(values)
    outside = np.array([low - 1.0 - 0.1 * abs(low), high + 1.0 + 0.1 * abs(high)])
    assert ranks_of(values).apply(outside).tolist() == [0.0, 1.0]


def test_values_that_are_not_finite_have_no_rank():
    assert np.isnan(ranks_of([1.0, 2.0]).apply(np.array([math.nan, math.inf, -math.inf]))).all()


@given(VALUES)
def test_buckets_hold_their_values_and_keep_their_order(values):
    ordered = np.sort(np.array(values) + 0.0)
    buckets = rank_buckets(ordered)
    assert (np.diff(buckets) >= 0).all()
    assert (bucket_edge(buckets) <= ordered).all()
    assert (ordered <= bucket_edge(buckets + 1)).all()


def test_buckets_are_a_sixty_fourth_of_a_power_of_two_wide():
    values = np.array([1.0, math.nextafter(1 + 1 / 64, 0), 1 + 1 / 64, 2.0, -1.0])
    buckets = rank_buckets(values)
    assert buckets[0] == buckets[1] == buckets[2] - 1 == buckets[3] - 64
    assert bucket_edge(buckets[2:4]).tolist() == [1 + 1 / 64, 2.0]


def test_a_scale_subtracts_the_center_and_divides_by_the_spread():
    assert Scale(center=3.0, spread=0.5).apply(np.array([2.0, 3.0, 4.5])).tolist() == [-2.0, 0.0, 3.0]


@pytest.mark.parametrize("spread", [0.0, math.nan, math.inf, -1.0])
def test_a_spread_that_cannot_be_divided_by_is_refused_with_a_remedy(spread):
    with pytest.raises(DataError, match=r"margin_x has no spread .* 7 ranked rows.*metric\.normalise: none"):
        checked_scale(0.0, spread, name="margin_x", num_rows=7)


def test_the_consistency_constant_makes_mad_a_standard_deviation():
    values = np.random.default_rng(0).normal(size=400_000)
    assert np.median(np.abs(values - np.median(values))) * CONSISTENCY == pytest.approx(1.0, abs=5e-3)
    assert math.erf(1 / CONSISTENCY / math.sqrt(2)) == pytest.approx(0.5, abs=1e-15)


@given(FINITE, FINITE, VALUES, FINITE)
def test_what_was_fitted_comes_back_from_json_to_the_bit(center, spread, values, weight):
    fitted = Fitted(
        normalisers={"a": Scale(center=center, spread=spread), "b": ranks_of(values)},
        weight=weight,
        scales={"a": spread},
        ranges={"a": (-2.0, center)},
    )
    back = fitted_of(json.loads(json.dumps(fitted.to_dict())))
    assert back.to_dict() == fitted.to_dict()
    array = np.array(values)
    assert np.array_equal(back.normalisers["b"].apply(array), fitted.normalisers["b"].apply(array))
    assert back.normalisers["a"] == fitted.normalisers["a"]


@pytest.mark.parametrize("damaged", [{}, {"center": 1.0}, {"buckets": [1]}, {"center": "x", "spread": 1.0}])
def test_a_damaged_normaliser_is_an_error(damaged):
    with pytest.raises((KeyError, TypeError, ValueError)):
        normaliser_of(damaged)
