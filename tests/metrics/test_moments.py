import math
from fractions import Fraction
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.metrics.moments import _BLOCK, Moments, exact_mean, moments_of
from pipeline.metrics.normalise import Scale

FINITE = st.floats(allow_nan=False, allow_infinity=False)
LARGEST = 1.7976931348623157e308
SMALLEST = 5e-324
EXTREMES = st.sampled_from([0.0, -0.0, SMALLEST, -SMALLEST, 2.2e-308, 1e-160, 1e-100, 1e130, 1e160, LARGEST, -LARGEST])
VALUES = st.lists(FINITE | EXTREMES | st.floats(-10, 10), min_size=1, max_size=40)


def exact(values) -> tuple[Fraction, Fraction]:
    """Mean and variance by the textbook, in rational numbers."""
    numbers = [Fraction(value) for value in values]
    mean = sum(numbers) / len(numbers)
    return mean, sum((number - mean) ** 2 for number in numbers) / len(numbers)


def is_nearest_root(root: float, square: Fraction) -> bool:
    """Whether no float64 is nearer to the square root, by the squares of the midpoints to both neighbours."""
    value = Fraction(root)
    below = (value + Fraction(math.nextafter(root, -math.inf))) / 2
    above_float = math.nextafter(root, math.inf)
    above = (value + Fraction(above_float)) / 2 if math.isfinite(above_float) else None
    return (below <= 0 or below**2 <= square) and (above is None or square <= above**2)


@given(VALUES)
def test_mean_and_std_are_the_nearest_floats_to_the_exact_ones(values):
    moments = moments_of(np.array(values))
    mean, variance = exact(values)
    assert moments.mean() == float(mean)
    assert is_nearest_root(moments.std(), variance)


@given(VALUES, st.randoms(use_true_random=False), st.integers(1, 7))
def test_any_split_and_order_merges_to_the_same_bits(values, random, num_parts):
    whole = moments_of(np.array(values))
    shuffled = list(values)
    random.shuffle(shuffled)
    parts = [moments_of(np.array(shuffled[i::num_parts])) for i in range(num_parts)]
    random.shuffle(parts)
    assert reduce(add, parts, Moments()) == whole


@pytest.mark.parametrize("num_values", [1, _BLOCK - 1, _BLOCK, _BLOCK + 1, 50_000])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 300.0])
def test_blocks_of_any_width_of_exponents_sum_exactly(num_values, spread):
    rng = np.random.default_rng(num_values)
    values = np.ldexp(rng.normal(size=num_values), np.clip(rng.normal(0, spread, num_values), -1100, 1000).astype(int))
    moments = moments_of(values)
    numbers = [int(Fraction(value) * 2**1074) for value in values.tolist()]
    assert moments.total == sum(numbers)
    assert moments.total_squares == sum(number * number for number in numbers)


def test_random_bit_patterns_sum_exactly():
    values = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64).view(np.float64)
    values = values[np.isfinite(values)]
    numbers = [int(Fraction(value) * 2**1074) for value in values.tolist()]
    assert moments_of(values) == Moments(
        count=len(numbers), total=sum(numbers), total_squares=sum(number * number for number in numbers)
    )


@pytest.mark.parametrize("outlier", [0.0, 1e-300, 1e-30, 1e-5, 1e5, 1e30, 1e300])
@pytest.mark.parametrize("num_outliers", [1, 40, 5_000])
def test_outliers_of_any_size_leave_sums_exact(outlier, num_outliers):
    values = np.random.default_rng(0).normal(0, 1, 10_000)
    values[:num_outliers] *= outlier
    values = np.random.default_rng(1).permutation(values)
    numbers = [int(Fraction(value) * 2**1074) for value in values.tolist()]
    expected = Moments(count=10_000, total=sum(numbers), total_squares=sum(number**2 for number in numbers))
    assert moments_of(values) == expected


@pytest.mark.parametrize("value", [math.nextafter(1.0, 0.0), -math.nextafter(2.0, 0.0), LARGEST, SMALLEST])
def test_a_block_of_values_of_all_ones_does_not_round(value):
    # The worst case of the sums: every digit at its largest.
    number = int(Fraction(value) * 2**1074)
    moments = moments_of(np.full(_BLOCK, value))
    assert (moments.total, moments.total_squares) == (_BLOCK * number, _BLOCK * number * number)


@given(VALUES)
def test_the_exact_mean_is_that_of_the_moments(values):
    assert exact_mean(np.array(values)) == moments_of(np.array(values)).mean()
    assert math.isnan(exact_mean(np.array([])))


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.floats(-1e3, 1e3), st.floats(1e-2, 1e3))
def test_agrees_with_numpy_on_ordinary_data(seed, centre, scale):
    values = np.random.default_rng(seed).normal(centre, scale, 2_000)
    moments = moments_of(values)
    assert moments.mean() == pytest.approx(values.mean(), rel=1e-14, abs=1e-14 * np.abs(values).max())
    assert moments.std() == pytest.approx(values.std(), rel=1e-12)


@pytest.mark.parametrize("exponent", range(-1074, 1024, 7))
def test_every_magnitude_sums_exactly(exponent):
    values = np.ldexp(np.array([1.0, -1.3, 1.9, 1.0 + 2.0**-52]), exponent)
    numbers = [int(Fraction(value) * 2**1074) for value in values.tolist()]
    moments = moments_of(values)
    assert (moments.total, moments.total_squares) == (sum(numbers), sum(number * number for number in numbers))


def test_a_root_just_above_a_midpoint_rounds_up():
    assert moments_of(np.array([1.0, -(2.0**-53)])).std() == 0.5
    assert moments_of(np.array([1.0, -(2.0**-53 + 2.0**-105)])).std() == (1 + 2.0**-52) / 2


def test_a_large_offset_does_not_cancel_the_spread():
    assert moments_of(np.array([1e15, 1e15 + 2])).std() == 1.0


def test_slices_and_strides_of_arrays_are_read_right():
    values = np.arange(100.0)
    assert moments_of(values[::-3]) == moments_of(values[::-3].copy())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_with_a_count(bad):
    for refuse in (moments_of, exact_mean):
        with pytest.raises(DataError, match="2 of 5"):
            refuse(np.array([1.0, bad, 2.0, bad, 0.0]))


def test_no_values_have_no_mean_or_spread():
    moments = moments_of(np.array([]))
    assert math.isnan(moments.mean())
    assert math.isnan(moments.std())
    assert moments.to_dict() == {"count": 0, "mean": None, "std": None}


def test_equal_values_have_no_spread():
    assert moments_of(np.full(1000, 0.1)).std() == 0.0


def test_z_scores_are_the_authors_formula():
    values = np.random.default_rng(0).normal(3, 2, 1000)
    moments = moments_of(values)
    z = Scale(center=moments.mean(), spread=moments.std()).apply(values)
    assert np.allclose(z, (values - values.mean()) / values.std(), rtol=1e-13, atol=1e-13)
    assert abs(z.mean()) < 1e-14
    assert z.std() == pytest.approx(1, abs=1e-14)
