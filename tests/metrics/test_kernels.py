import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.kernels import (
    ABOVE,
    BELOW,
    BETWEEN,
    NO_BAND,
    Band,
    ExactSums,
    Kept,
    Scales,
    add_values,
    band_scan,
    potential_scores,
    scan_scores,
    survey_scan,
)
from pipeline.metrics.moments import Moments, moments_from, moments_of

NUM_ROWS = 10_000
SEEDS = st.integers(0, 2**32)


def margins(seed: int, num_rows: int = NUM_ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.7, 1.5, num_rows), rng.normal(0.2, 3.0, num_rows)


def numpy_scores(explicit: np.ndarray, implied: np.ndarray, scales: Scales) -> np.ndarray:
    z_explicit = (explicit - scales.mean_explicit) / scales.std_explicit
    return z_explicit - scales.weight * ((implied - scales.mean_implicit) / scales.std_implicit) + 0.0


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.tobytes() == right.tobytes()


# Sums


@given(
    st.lists(
        st.tuples(st.integers(-1074, 971), st.integers(-(2**53) + 1, 2**53 - 1)).map(
            lambda pair: math.ldexp(pair[1], pair[0])
        ),
        max_size=30,
    ),
    st.booleans(),
    st.integers(1, 400),
)
def test_sums_are_those_of_the_integers_that_doubles_are(values, absolute, repeats):
    sums = ExactSums.empty()
    assert add_values(np.tile(np.array(values), repeats), sums, absolute=absolute)
    numbers = [int(Fraction(abs(value) if absolute else value) * 2**1074) for value in values]
    assert sums.integers() == (repeats * sum(numbers), repeats * sum(number * number for number in numbers))


@pytest.mark.parametrize("outlier", [0.0, 1e-300, 1e-30, 1e-5, 1e5, 1e30, 1e300])
@pytest.mark.parametrize("num_outliers", [1, 40, 5_000])
def test_outliers_of_any_size_leave_sums_exact(outlier, num_outliers):
    values = np.random.default_rng(0).normal(0, 1, NUM_ROWS)
    values[:num_outliers] *= outlier
    values = np.random.default_rng(1).permutation(values)
    numbers = [int(Fraction(value) * 2**1074) for value in values.tolist()]
    expected = Moments(count=NUM_ROWS, total=sum(numbers), total_squares=sum(number**2 for number in numbers))
    assert moments_of(values) == expected


@given(SEEDS, st.lists(st.integers(0, NUM_ROWS), max_size=5))
def test_blocks_and_what_was_summed_before_do_not_move_a_sum(seed, cuts):
    values = np.ldexp(margins(seed)[0], np.random.default_rng(seed).integers(-40, 40, NUM_ROWS))
    sums = ExactSums.empty()
    for block in np.split(values, sorted(cuts)):
        add_values(block, sums)
    assert moments_from(sums, NUM_ROWS) == moments_of(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2047, 2048, NUM_ROWS - 1])
def test_sums_refuse_a_value_that_is_not_finite(bad, place):
    values = margins(0)[0]
    values[place] = bad
    assert not add_values(values, ExactSums.empty())


# Scores


@given(SEEDS, st.booleans(), st.floats(0, 10))
def test_scores_have_the_bits_of_numpys_formula(seed, absolute, weight):
    explicit, implicit = margins(seed)
    scales = Scales(explicit.mean(), explicit.std(), implicit.mean(), implicit.std(), weight)
    out = np.empty(NUM_ROWS)
    assert potential_scores(explicit, implicit, scales, out, absolute=absolute) == 0
    assert same_bits(out, numpy_scores(explicit, np.abs(implicit) if absolute else implicit, scales))


def test_scores_are_never_a_negative_zero():
    out = np.empty(2)
    potential_scores(np.array([-0.0, 0.0]), np.array([0.0, -0.0]), Scales(0.0, 1.0, 0.0, 1.0, 1.0), out, absolute=False)
    assert not np.signbit(out).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_with_a_term_that_is_not_finite_have_no_score(bad):
    explicit, implicit = margins(0)
    explicit[3] = implicit[[3, 70]] = bad
    out = np.empty(NUM_ROWS)
    assert potential_scores(explicit, implicit, Scales(0.1, 2.0, 0.1, 2.0, 1.0), out, absolute=True) == 2
    assert np.flatnonzero(np.isnan(out)).tolist() == [3, 70]


@given(SEEDS, st.floats(-4, 4), st.floats(0, 1), st.integers(0, 300))
def test_a_scan_of_scores_counts_above_and_copies_inside(seed, low, width, num_rows):
    scores = np.round(margins(seed, num_rows)[0], 1)
    out = np.empty(num_rows)
    counts = scan_scores(scores, low, low + width, out)
    inside = scores[(scores >= low) & (scores <= low + width)]
    assert counts == (np.count_nonzero(scores > low + width), inside.size, 0)
    assert np.array_equal(out[: inside.size], inside)


def test_a_scan_of_scores_notices_what_is_not_finite():
    scores = margins(0)[0]
    scores[[0, 100, 9_999]] = math.nan, math.inf, -math.inf
    assert scan_scores(scores, -1.0, 1.0, np.empty(NUM_ROWS)).num_bad == 3


# Bands


def band_around(explicit: np.ndarray, implied: np.ndarray, scales: Scales, width: float) -> Band:
    """A band that holds the ratio of the scales and the threshold of the best 40%."""
    rho = scales.weight * scales.std_explicit / scales.std_implicit
    center_e, center_a = 0.3, -0.2
    u = np.sort((explicit - center_e) - rho * (implied - center_a))
    tau = u[int(0.6 * u.size)]
    return Band(center_e, center_a, rho * (1 - width), rho * (1 + width), tau - width, tau + width)


@given(SEEDS, st.booleans(), st.sampled_from([0.0, 1e-15, 1e-6, 0.01, 0.3]), st.floats(0.01, 5))
def test_rows_that_a_band_settles_are_on_that_side_of_the_threshold(seed, absolute, width, weight):
    explicit, implicit = margins(seed)
    implied = np.abs(implicit) if absolute else implicit
    scales = Scales(explicit.mean(), explicit.std(), implied.mean(), implied.std(), weight)
    kept = Kept.room_for(NUM_ROWS)
    counts = band_scan(explicit, implicit, band_around(explicit, implied, scales, width), kept, absolute=absolute)
    scores = numpy_scores(explicit, implied, scales)
    threshold = np.sort(scores)[int(0.6 * NUM_ROWS)]
    assert (scores[kept.classes == ABOVE] > threshold).all()
    assert (scores[kept.classes == BELOW] < threshold).all()
    between = np.flatnonzero(kept.classes == BETWEEN)
    assert 1 <= between.size <= (width + 1e-3) * 2 * NUM_ROWS
    assert counts == (np.count_nonzero(kept.classes == ABOVE), between.size, 0, 0)
    assert np.array_equal(kept.rows[: between.size], between)
    assert same_bits(kept.explicit[: between.size], explicit[between])
    assert same_bits(kept.implicit[: between.size], implicit[between])


@given(
    SEEDS, st.lists(st.tuples(st.integers(0, 4999), st.booleans(), st.sampled_from([math.nan, math.inf, -math.inf])))
)
@settings(max_examples=40)
def test_rows_that_are_not_finite_are_counted_by_their_first_term_and_left_out(seed, bad):
    explicit, implicit = margins(seed, 5_000)
    for row, in_explicit, value in bad:
        (explicit if in_explicit else implicit)[row] = value
    finite_e, finite_i = np.isfinite(explicit), np.isfinite(implicit)
    finite = finite_e & finite_i
    band = Band(0.7, 2.0, 0.45, 0.55, 0.2, 0.3)
    kept, sums = Kept.room_for(5_000), (ExactSums.empty(), ExactSums.empty())
    counts = survey_scan(explicit, implicit, band, kept, sums, absolute=True)
    assert counts[2:] == (np.count_nonzero(~finite_e), np.count_nonzero(finite_e & ~finite_i))
    assert finite[kept.rows[: counts.num_kept]].all()
    assert (kept.classes[~finite] == BETWEEN).all()
    num_finite = int(np.count_nonzero(finite))
    assert moments_from(sums[0], num_finite) == moments_of(explicit[finite])
    assert moments_from(sums[1], num_finite) == moments_of(np.abs(implicit[finite]))


@pytest.mark.parametrize("absolute", [False, True])
def test_a_survey_scan_is_a_band_scan_and_sums(absolute):
    explicit, implicit = margins(5)
    band = Band(0.7, 0.2, 0.45, 0.55, 0.2, 0.3)
    one, other = Kept.room_for(NUM_ROWS), Kept.room_for(NUM_ROWS)
    sums = (ExactSums.empty(), ExactSums.empty())
    counts = survey_scan(explicit, implicit, band, one, sums, absolute=absolute)
    assert counts == band_scan(explicit, implicit, band, other, absolute=absolute)
    assert np.array_equal(one.classes, other.classes)
    assert moments_from(sums[1], NUM_ROWS) == moments_of(np.abs(implicit) if absolute else implicit)


def test_without_a_band_rows_are_only_counted_and_summed():
    explicit, implicit = margins(6)
    explicit[17] = math.nan
    explicit[18], implicit[18] = 1e308, -1e308
    sums = (ExactSums.empty(), ExactSums.empty())
    counts = survey_scan(explicit, implicit, NO_BAND, Kept.room_for(NUM_ROWS), sums, absolute=True)
    assert counts == (0, 0, 1, 0)


def test_one_term_is_ranked_by_a_band_without_a_ratio():
    values = margins(7)[0]
    kept = Kept.room_for(NUM_ROWS)
    counts = band_scan(values, values, Band(0.0, 0.0, 0.0, 0.0, 0.5, 0.6), kept, absolute=False)
    inside = np.flatnonzero((values >= 0.5) & (values <= 0.6))
    assert counts[:2] == (np.count_nonzero(values > 0.6), inside.size)
    assert np.array_equal(kept.rows[: inside.size], inside)


def test_read_only_and_strided_columns_are_read_right():
    explicit, implicit = margins(8)
    columns = [values[::2] for values in (explicit, implicit)]
    for values in columns:
        values.flags.writeable = False
    scales, out = Scales(0.1, 2.0, 0.2, 3.0, 1.0), np.empty(NUM_ROWS // 2)
    potential_scores(*columns, scales, out, absolute=False)
    assert same_bits(out, numpy_scores(*columns, scales))


def test_buffers_that_are_too_short_are_refused():
    explicit, implicit = margins(9)
    short = np.empty(NUM_ROWS - 1)
    with pytest.raises(ValueError, match="9999"):
        potential_scores(explicit, implicit, Scales(0.0, 1.0, 0.0, 1.0, 1.0), short, absolute=True)
    with pytest.raises(ValueError, match="9999"):
        scan_scores(explicit, 0.0, 1.0, short)
    with pytest.raises(ValueError, match="9999"):
        band_scan(explicit, implicit, NO_BAND, Kept.room_for(NUM_ROWS - 1), absolute=True)
    with pytest.raises(ValueError, match="10000 and 9999"):
        band_scan(explicit, implicit[1:], NO_BAND, Kept.room_for(NUM_ROWS), absolute=True)
