"""What a length gap explains of a margin, against numpy's least squares, exact fractions and plain isotonic fits."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.metrics.length import MOST_TOKENS, GapSums, gap_sums, length_fit_of

ROWS = st.lists(
    st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.integers(-40, 40)), min_size=1, max_size=60
)
TAME_ROWS = st.lists(st.tuples(st.integers(-50, 50).map(float), st.integers(-9, 9)), min_size=1, max_size=40)


def sums_of(rows) -> GapSums:
    return gap_sums(np.array([m for m, _ in rows], dtype=float), np.array([g for _, g in rows], dtype=float))


def fits_of(rows):
    return sums_of(rows).line().to_dict(), sums_of(rows).curve().to_dict()


def plain_curve(rows):
    """The isotonic fit of all pairs taken both ways round, by gap: the max-min formula on means, in fractions."""
    both = [(g, Fraction(m)) for m, g in rows] + [(-g, -Fraction(m)) for m, g in rows]
    gaps = sorted({g for g, _ in both})
    sign = -1 if sum(g * m for g, m in both) < 0 else 1
    sums = [sum(sign * m for gap, m in both if gap == g) for g in gaps]
    counts = [sum(gap == g for gap, _ in both) for g in gaps]

    def mean(a, b):
        return sum(sums[a : b + 1]) / sum(counts[a : b + 1])

    places = range(len(gaps))
    return {gaps[i]: sign * float(max(min(mean(a, b) for b in places[i:]) for a in places[: i + 1])) for i in places}


def test_the_line_is_least_squares_through_zero():
    rng = np.random.default_rng(0)
    gaps = rng.integers(-500, 500, 300_000).astype(float)
    margins = 0.01 * gaps + rng.normal(0.3, 2.0, gaps.size)
    [slope], *_ = np.linalg.lstsq(gaps[:, None], margins)
    line = gap_sums(margins, gaps).line()
    assert line.slope == pytest.approx(slope, rel=1e-12)
    assert line.of(np.array([-3.0, 0.0, 2.0])) == pytest.approx([-3 * slope, 0.0, 2 * slope])


@settings(max_examples=60)
@given(ROWS)
def test_the_slope_is_the_exact_quotient_rounded_once(rows):
    squares = sum(g * g for _, g in rows)
    slope = float(sum(Fraction(m) * g for m, g in rows) / squares) if squares else 0.0
    assert sums_of(rows).line().slope == slope


@settings(max_examples=60)
@given(TAME_ROWS)
def test_the_curve_is_the_isotonic_fit_of_pairs_taken_both_ways_round(rows):
    curve, plain = sums_of(rows).curve(), plain_curve(rows)
    assert curve.of(np.array([*plain], dtype=float)) == pytest.approx([*plain.values()], abs=1e-12)


@settings(max_examples=60)
@given(ROWS, st.randoms(use_true_random=False), st.integers(0, 60))
def test_order_parts_and_turned_pairs_move_no_bit(rows, random, cut):
    fits = fits_of(rows)
    mixed = [(-m, -g) if random.random() < 0.5 else (m, g) for m, g in random.sample(rows, len(rows))]
    assert fits_of(mixed) == fits
    merged = sums_of(mixed[:cut]) + sums_of(mixed[cut:])
    assert (merged.line().to_dict(), merged.curve().to_dict()) == fits
    assert tuple(length_fit_of(fit).to_dict() for fit in fits) == fits


@settings(max_examples=40)
@given(TAME_ROWS, st.lists(st.integers(-20, 20), min_size=2, max_size=9))
def test_a_curve_goes_one_way_also_between_and_beyond_the_gaps_that_it_saw(rows, gaps):
    curve = sums_of(rows).curve()
    values = curve.of(np.sort(np.array(gaps, dtype=float)) / 2).tolist()
    assert [*sorted(values)] in (values, values[::-1])
    assert curve.of(np.zeros(1)) == 0
    assert all(a < b for a, b in pairwise(curve.gaps))


def test_rows_of_equal_length_explain_nothing():
    sums = gap_sums(np.array([3.0, -1.0]), np.zeros(2))
    assert [sums.line().of(np.array([7.0])), sums.curve().of(np.array([7.0]))] == [0.0, 0.0]


def test_a_gap_that_is_no_count_of_tokens_is_refused():
    with pytest.raises(DataError, match=r"differ by 16777216 tokens; .* set metric\.length: keep"):
        gap_sums(np.ones(2), np.array([1.0, -float(MOST_TOKENS)]))
