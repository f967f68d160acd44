import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.metrics.ratio import RATIO_METHODS, RatioSample, automatic_ratio

METHODS = list(RATIO_METHODS)
LABEL_FREE = [method for method in METHODS if method != "bradley-terry"]


def sample_of(num_rows=400, *, seed=0, shift_e=0.8, shift_i=0.5, scale_e=1.0, scale_i=1.0):
    """Margins that confirm most labels, mildly correlated, heavy in the tails."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=num_rows)
    explicit = scale_e * (rng.standard_t(5, num_rows) + 0.5 * common + shift_e)
    implicit = scale_i * (rng.normal(size=num_rows) + 0.5 * common + shift_i)
    return of(explicit, implicit)


def of(explicit_signed, implicit_signed, *, absolute_explicit=False):
    explicit = np.abs(explicit_signed) if absolute_explicit else explicit_signed
    return RatioSample(
        explicit=explicit,
        implicit=np.abs(implicit_signed),
        explicit_signed=explicit_signed,
        implicit_signed=implicit_signed,
    )


def rows(sample, order):
    return RatioSample(**{name: getattr(sample, name)[order] for name in RatioSample.__dataclass_fields__})


def test_every_method_says_what_it_is():
    assert all(definition.about and definition.source for definition in RATIO_METHODS.values())


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15)
@given(seed=st.integers(0, 50), factor=st.floats(1e-6, 1e6))
def test_w_follows_the_units_of_the_margins(method, seed, factor):
    w = automatic_ratio(method, sample_of(seed=seed))
    assert automatic_ratio(method, sample_of(seed=seed, scale_e=factor)) == pytest.approx(w * factor, rel=1e-7)
    assert automatic_ratio(method, sample_of(seed=seed, scale_i=factor)) == pytest.approx(w / factor, rel=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_w_does_not_depend_on_the_order_of_rows(method):
    sample = sample_of(3000)
    w = automatic_ratio(method, sample)
    rng = np.random.default_rng(1)
    assert all(automatic_ratio(method, rows(sample, rng.permutation(3000))) == w for _ in range(5))


@pytest.mark.parametrize("method", METHODS)
def test_w_is_steady_from_sample_to_sample(method):
    ratios = [automatic_ratio(method, sample_of(20_000, seed=seed)) for seed in range(5)]
    assert min(ratios) > 0
    assert np.std(ratios) < 0.1 * np.mean(ratios)


@pytest.mark.parametrize("method", LABEL_FREE)
def test_w_exists_where_the_reward_made_the_labels(method):
    signed = sample_of()
    sample = of(np.abs(signed.explicit_signed), signed.implicit_signed)
    assert 0 <= automatic_ratio(method, sample) < np.inf


@pytest.mark.parametrize("method", LABEL_FREE)
def test_w_exists_where_the_policy_is_against_the_labels(method):
    assert 0 <= automatic_ratio(method, sample_of(shift_i=-2.0)) < np.inf


def test_std_is_the_ratio_of_standard_deviations():
    sample = sample_of()
    expected = np.std(sample.explicit) / np.std(np.abs(sample.implicit_signed))
    assert automatic_ratio("std", sample) == pytest.approx(expected, rel=1e-13)


def test_robust_is_the_ratio_of_median_deviations():
    sample = of(np.array([-1.0, 0.0, 1.0, 2.0, 900.0]), np.array([0.0, 0.5, -1.0, 1.5, 70.0]))
    assert automatic_ratio("robust", sample) == 1.0 / 0.5


def test_robust_is_not_moved_by_one_extreme_row():
    sample = sample_of()
    spoiled = sample.explicit_signed.copy()
    spoiled[0] = 1e6
    before, after = (automatic_ratio("robust", of(e, sample.implicit_signed)) for e in (sample.explicit, spoiled))
    assert after == pytest.approx(before, rel=0.03)


def test_bradley_terry_is_the_ratio_of_the_likeliest_scales():
    sample = sample_of(300)
    grid = np.linspace(0.005, 4, 8000)

    def likeliest(margins):
        return grid[np.argmin(np.logaddexp(0, -grid[:, None] * margins).sum(axis=1))]

    expected = likeliest(sample.implicit_signed) / likeliest(sample.explicit_signed)
    assert automatic_ratio("bradley-terry", sample) == pytest.approx(expected, rel=0.01)


def test_bradley_terry_refuses_labels_made_by_the_reward():
    signed = sample_of()
    with pytest.raises(DataError, match="the explicit margin confirms the label in 400 of 400"):
        automatic_ratio("bradley-terry", of(np.abs(signed.explicit_signed), signed.implicit_signed))


def test_decorrelation_leaves_a_potential_without_correlation():
    rng = np.random.default_rng(3)
    implicit = rng.normal(size=500)
    explicit = rng.normal(size=500) + 0.7 * np.abs(implicit)
    sample = of(explicit, implicit)
    potential = explicit - automatic_ratio("decorrelation", sample) * np.abs(implicit)
    assert np.corrcoef(potential, np.abs(implicit))[0, 1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", ["decorrelation", "whitening"])
def test_w_is_zero_where_the_margins_are_against_each_other(method):
    implicit = np.random.default_rng(4).normal(size=500)
    assert automatic_ratio(method, of(1.0 - np.abs(implicit), implicit)) == 0.0


def test_whitening_leaves_the_nearest_uncorrelated_scores():
    sample = sample_of(500)
    z = np.stack([(x - x.mean()) / x.std() for x in (sample.explicit, sample.implicit)])
    values, vectors = np.linalg.eigh(np.cov(z, ddof=0))
    weights = (vectors / np.sqrt(values)) @ vectors.T
    expected = -weights[0, 1] / weights[0, 0] * sample.explicit.std() / sample.implicit.std()
    assert automatic_ratio("whitening", sample) == pytest.approx(expected, rel=1e-12)


def test_whitening_of_margins_that_say_the_same_is_std():
    implicit = np.random.default_rng(5).gamma(2.0, 1.0, 500)
    same = of(3.0 * implicit, implicit)
    assert automatic_ratio("whitening", same) == pytest.approx(automatic_ratio("std", same), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", ["explicit", "implicit"])
def test_a_margin_without_spread_is_refused(method, which):
    sample = sample_of(20)
    flat = np.full(20, 0.5)
    explicit, implicit = sample.explicit_signed, sample.implicit_signed
    broken = of(flat, implicit) if which == "explicit" else of(explicit, flat)
    with pytest.raises(DataError):
        automatic_ratio(method, broken)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_rows", [0, 1])
def test_too_few_rows_are_refused_with_their_number(method, num_rows):
    with pytest.raises(DataError, match=f"{method} needs 2 rows or more, got {num_rows}"):
        automatic_ratio(method, sample_of(num_rows))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_their_number(bad):
    sample = sample_of(20)
    spoiled = sample.implicit_signed.copy()
    spoiled[[3, 7]] = bad
    with pytest.raises(DataError, match="2 of 20 values of the implicit margin"):
        automatic_ratio("std", of(sample.explicit_signed, spoiled))


def test_columns_of_different_length_are_refused():
    sample = sample_of(20)
    with pytest.raises(DataError, match="shape"):
        automatic_ratio("std", of(sample.explicit_signed, sample.implicit_signed[:10]))
