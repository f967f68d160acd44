"""The explicit/implicit ratio w of M_AP = explicit - w * implicit, set from the scores themselves.

Two margins in different units compete in M_AP, and w is the exchange rate. Each method is one idea of what a unit of
one is worth in the other, computed from a sample of the rows that are ranked. None of them sees what training on a
selection gives; jobs/study in the repository measures that. w is in raw units: pairs rank by explicit - w * implicit.

Sums are exact, so that no method depends on the order of the rows or on the machine's way of adding.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics.calibration import preference_scale
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.moments import exact_mean, moments_of

MIN_ROWS: Final = 2

_REMEDY: Final = "Give metric.weight a number, or choose another metric.ratio."


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioSample:
    """Margins of a sample of the ranked rows, each finite, float64 [num_rows].

    explicit: the explicit margin as the metric takes it.
    implicit: the implicit margin as the metric takes it.
    explicit_signed: reward of chosen minus reward of rejected.
    implicit_signed: implicit reward of chosen minus that of rejected.
    The last two are needed by methods that read labels, and may be left out for the others.
    """

    explicit: FloatArray
    implicit: FloatArray
    explicit_signed: FloatArray = field(default_factory=lambda: np.zeros(0))
    implicit_signed: FloatArray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioDefinition:
    """One method.

    estimate: w in raw units from a sample; DataError where the sample does not determine it.
    about: what it assumes, in a sentence.
    source: where it comes from.
    reads_labels: whether it needs the signed margins.
    """

    estimate: Callable[[RatioSample], float]
    about: str
    source: str
    reads_labels: bool = False


def automatic_ratio(method: str, sample: RatioSample) -> float:
    """The w of the method, in raw units, finite and at least 0.

    Raises:
        DataError: the sample does not determine it: too few rows, values that are not finite, a margin without
            spread, labels without information where the method reads them.
    """
    _check(method, sample)
    ratio = RATIO_METHODS[method].estimate(sample)
    if not 0 <= ratio < math.inf:
        raise DataError(f"metric.ratio {method} gives {ratio!r} on {sample.explicit.size} rows. {_REMEDY}")
    return ratio


def _check(method: str, sample: RatioSample) -> None:
    margins = {
        "explicit margin": sample.explicit,
        "implicit margin": sample.implicit,
        "signed explicit margin": sample.explicit_signed,
        "signed implicit margin": sample.implicit_signed,
    }
    num_rows = sample.explicit.size
    for name, values in margins.items():
        if not values.size and name.startswith("signed") and not RATIO_METHODS[method].reads_labels:
            continue
        if values.shape != (num_rows,):
            raise DataError(f"the {name} has shape {values.shape}; wanted ({num_rows},), as the explicit margin.")
        num_bad = int(np.count_nonzero(~np.isfinite(values)))
        if num_bad:
            raise DataError(f"{num_bad} of {num_rows} values of the {name} are NaN or infinite; take such rows out.")
    if num_rows < MIN_ROWS:
        raise DataError(f"metric.ratio {method} needs {MIN_ROWS} rows or more, got {num_rows}. {_REMEDY}")


def _spread(values: FloatArray, name: str) -> float:
    """The standard deviation, which must not be zero."""
    moments = moments_of(values)
    std = moments.std()
    if not std > 0:
        raise DataError(
            f"the {name} is {moments.mean()!r} in all {values.size} rows, so no ratio can be set from it. "
            "Check the scores, or rank by one margin: metric.name explicit or implicit."
        )
    return std


def standard_deviations(sample: RatioSample) -> float:
    """std(explicit) / std(implicit): w = 1 between z-scores, as in the paper's default."""
    return _spread(sample.explicit, "explicit margin") / _spread(sample.implicit, "implicit margin")


def robust_deviations(sample: RatioSample) -> float:
    """The same with the median absolute deviation from the median, which a few extreme rows cannot move."""
    return _deviation(sample.explicit, "explicit margin") / _deviation(sample.implicit, "implicit margin")


def _deviation(values: FloatArray, name: str) -> float:
    _spread(values, name)
    deviation = float(np.median(np.abs(values - np.median(values))))
    if not deviation > 0:
        raise DataError(
            f"more than half of the {values.size} values of the {name} are equal, so their median deviation is 0. "
            "Set metric.ratio to std, or give metric.weight a number."
        )
    return deviation


def log_odds(sample: RatioSample) -> float:
    """Both margins in log-odds of the labels: w is the scale of the implicit margin over that of the explicit one."""
    implicit = preference_scale(sample.implicit_signed, name="the implicit margin")
    return implicit / preference_scale(sample.explicit_signed, name="the explicit margin")


def decorrelation(sample: RatioSample) -> float:
    """Covariance over variance of the implicit margin: the potential is uncorrelated with the implicit margin.

    0 where the two margins are negatively correlated: any w above it makes the correlation stronger.
    """
    correlation, unit = _correlation(sample)
    return unit * correlation


def whitening(sample: RatioSample) -> float:
    """The potential is one of two uncorrelated scores that lie, in least squares, nearest to the two z-scores.

    With correlation c, the inverse root of the correlation matrix weighs the margins as 1 to -(1 - sqrt(1 - c^2)) / c:
    about half of what decorrelation takes, since either margin gives way; 1 as c nears 1; 0 where c is not positive.
    """
    correlation, unit = _correlation(sample)
    # The form that keeps its digits where the correlation is small.
    return unit * correlation / (1.0 + math.sqrt(max(0.0, 1.0 - correlation**2)))


def _correlation(sample: RatioSample) -> tuple[float, float]:
    """Correlation of the two margins, 0 where it is negative, and standard deviation of one over the other."""
    explicit, implicit = sample.explicit, sample.implicit
    std_explicit, std_implicit = _spread(explicit, "explicit margin"), _spread(implicit, "implicit margin")
    z_explicit = (explicit - exact_mean(explicit)) / std_explicit
    z_implicit = (implicit - exact_mean(implicit)) / std_implicit
    correlation = exact_mean(z_explicit * z_implicit)
    return min(max(0.0, correlation), 1.0), std_explicit / std_implicit


RATIO_METHODS: Final[Mapping[str, RatioDefinition]] = {
    "std": RatioDefinition(
        estimate=standard_deviations,
        about="One standard deviation of either margin is worth as much as one of the other.",
        source="arXiv 2503.01864, default of the authors' code",
    ),
    "robust": RatioDefinition(
        estimate=robust_deviations,
        about="As std, from median absolute deviations, which heavy tails do not move.",
        source="Hampel, JASA 69, 1974",
    ),
    "bradley-terry": RatioDefinition(
        estimate=log_odds,
        about="Both margins are read as log-odds of the labels; reads labels that either margin contradicts at times.",
        source="Bradley and Terry, Biometrika 39, 1952",
        reads_labels=True,
    ),
    "decorrelation": RatioDefinition(
        estimate=decorrelation,
        about="What the implicit margin explains of the explicit one is taken out; 0 if they are against each other.",
        source="ordinary least squares",
    ),
    "whitening": RatioDefinition(
        estimate=whitening,
        about="What the two margins share is taken out of both alike; 0 if they are against each other.",
        source="ZCA-cor of Kessy, Lewin and Strimmer, The American Statistician 72, 2018",
    ),
}
