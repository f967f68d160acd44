import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.metrics.calibration import log_odds_weight, preference_scale

MIXED = st.lists(st.floats(0.01, 100), min_size=1, max_size=40).flatmap(
    lambda values: st.tuples(st.just(values), st.floats(1e-3, 0.99).map(lambda share: -share * sum(values)))
)


def log_likelihood(margins, scale):
    return -np.logaddexp(0, -scale * margins).sum()


def test_scale_is_that_of_the_labels_it_was_drawn_from():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 2, 200_000)
    margins = truth * np.where(rng.random(truth.size) < 1 / (1 + np.exp(-0.7 * truth)), 1, -1)
    assert preference_scale(margins, name="m") == pytest.approx(0.7, rel=0.02)


def test_scale_of_two_rows_is_the_root_by_hand():
    # 2 / (1 + x^2) = x / (1 + x) with x = exp(a) for margins 2 and -1: x^3 - x - 2 = 0.
    x = np.roots([1, 0, -1, -2])
    expected = np.log(x[np.isreal(x)].real[0])
    assert preference_scale(np.array([2.0, -1.0]), name="m") == pytest.approx(expected, rel=1e-14)


def test_scale_is_the_best_of_a_fine_grid():
    margins = np.random.default_rng(1).normal(0.4, 1, 500)
    grid = np.linspace(0.01, 5, 5000)
    best = grid[np.argmax([log_likelihood(margins, scale) for scale in grid])]
    assert preference_scale(margins, name="m") == pytest.approx(best, abs=0.001)


@given(MIXED)
def test_no_scale_near_it_is_likelier(values):
    margins = np.array([*values[0], values[1]])
    scale = preference_scale(margins, name="m")
    best = log_likelihood(margins, scale)
    slack = 1e-12 * abs(best)
    assert all(best >= log_likelihood(margins, scale * factor) - slack for factor in (0.5, 0.99, 1.01, 2))


@given(MIXED, st.floats(1e-6, 1e6))
def test_margins_times_c_have_the_scale_over_c(values, factor):
    margins = np.array([*values[0], values[1]])
    scale = preference_scale(margins, name="m")
    assert preference_scale(factor * margins, name="m") == pytest.approx(scale / factor, rel=1e-6)


def test_scale_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(2)
    margins = rng.normal(0.3, 1, 3000)
    scale = preference_scale(margins, name="m")
    assert all(preference_scale(rng.permutation(margins), name="m") == scale for _ in range(5))


@pytest.mark.parametrize(
    "margins",
    [[1e-200, -1e-201], [1e307, 1e307, -1e307], [1.0, -1e-20], [1.0, 1e-150, -1e-151], [1e300, -1e-5]],
)
def test_scale_of_extreme_margins_has_no_slope(margins):
    values = np.array(margins)
    scale = preference_scale(values, name="m")
    terms = values * log_odds_weight(scale * values)
    assert abs(terms.sum()) <= 1e-9 * np.abs(terms).max()


def test_margins_that_never_contradict_a_label_are_refused_with_counts():
    with pytest.raises(
        DataError, match=r"margin X confirms the label in 2 of 3 rows and contradicts it in 0.*whitening"
    ):
        preference_scale(np.array([1.0, 0.0, 2.0]), name="margin X")


@pytest.mark.parametrize("margins", [[-1.0, -2.0], [1.0, -1.0], [1.0, -2.0], [0.0, 0.0], []])
def test_margins_against_the_labels_are_refused(margins):
    with pytest.raises(DataError, match="against the labels"):
        preference_scale(np.array(margins), name="m")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_margins_that_are_not_finite_are_refused_with_their_number(bad):
    with pytest.raises(DataError, match="1 of 3 values of m are NaN or infinite"):
        preference_scale(np.array([1.0, bad, -0.5]), name="m")


def test_a_scale_beyond_a_double_is_refused():
    with pytest.raises(DataError, match="out of the range"):
        preference_scale(np.array([3e-310, -1e-310]), name="m")


def test_weight_of_the_logistic_loss_is_sigmoid_of_minus_the_margin():
    margins = np.array([-800.0, -3.0, 0.0, 3.0, 700.0])
    expected = [1.0, 1 / (1 + np.exp(-3)), 0.5, 1 / (1 + np.exp(3)), np.exp(-700)]
    assert log_odds_weight(margins) == pytest.approx(expected, rel=1e-14)
