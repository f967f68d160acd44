"""What makes margins comparable keeps their order, and comes back from JSON to the bit."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.metrics.normalise import CONSISTENCY, Fitted, Ranks, Scale, checked_scale

FINITE = st.floats(allow_nan=False, allow_infinity=False)
EXTREMES = st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 2.0**-1022, 1.0, -1.0, 1.7976931348623157e308, -1.7e308])
VALUES = st.lists(FINITE | EXTREMES | st.floats(-3, 3), min_size=1, max_size=60)


def ranks_of(values) -> Ranks:
    return Ranks(ordered=np.sort(np.array(values)))


@given(VALUES)
def test_ranks_are_exactly_the_share_below_and_half_of_the_ties(values):
    ranks = ranks_of(values).apply(np.array(values)).tolist()
    for value, rank in zip(values, ranks, strict=True):
        below, equal = sum(other < value for other in values), values.count(value)
        assert rank == (2 * below + equal) / (2 * len(values))
    assert sum(ranks) == pytest.approx(len(values) / 2)


@given(VALUES, VALUES)
def test_ranks_keep_the_order_and_lie_between_0_and_1(fitted, values):
    ordered = np.sort(np.array([*fitted, *values]))
    ranks = ranks_of(fitted).apply(ordered)
    assert (np.diff(ranks) >= 0).all()
    assert (ranks[np.isin(ordered, fitted)] > 0).all()
    assert ((ranks >= 0) & (ranks <= 1)).all()


def test_zeros_of_both_signs_have_one_rank_and_nan_has_none():
    ranks = ranks_of([0.0, -0.0, 1.0]).apply(np.array([-0.0, 0.0, math.nan, math.inf, -math.inf]))
    assert np.array_equal(ranks, [1 / 3, 1 / 3, math.nan, 1.0, 0.0], equal_nan=True)


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


@given(FINITE, FINITE, FINITE)
def test_what_was_fitted_comes_back_from_json_to_the_bit(center, spread, weight):
    fitted = Fitted(
        normalisers={"a": Scale(center=center, spread=spread)},
        weight=weight,
        scales={"a": spread},
        ranges={"a": (-2.0, center)},
    )
    assert Fitted.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
    nothing = Fitted()
    assert Fitted.from_dict(nothing.to_dict()) == nothing


def test_of_ranks_only_their_name_is_written():
    assert Fitted(normalisers={"a": ranks_of([1.0, 2.0])}).to_dict()["normalisers"] == {"a": "ranks"}


@pytest.mark.parametrize("damaged", [{}, {"center": 1.0}, "ranks", {"center": "x", "spread": 1.0}, None])
def test_damaged_statistics_are_an_error(damaged):
    written = Fitted(normalisers={"a": Scale(center=0.0, spread=1.0)}).to_dict()
    for broken in ({**written, "normalisers": {"a": damaged}}, {**written, "weight": "x"}, {"weight": None}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Fitted.from_dict(broken)
