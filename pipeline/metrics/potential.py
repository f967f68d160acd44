"""What pairs are ranked by: the alignment potential, and the metrics it is measured against.

The only place of these formulas; every path scores by them. A metric names the terms it combines and what it must know
of the whole set, and gives a score from them, higher is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from pipeline.metrics.calibration import log_odds_weight
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.normalise import Fitted

Term = Literal[
    "margin_explicit",
    "margin_explicit_signed",
    "margin_implicit",
    "margin_implicit_abs",
    "rewards_mean",
    "rewards_variance",
    "uniform",
]

EXPLICIT: Final[Term] = "margin_explicit"
"""The explicit margin as `metric.explicit` takes it."""
EXPLICIT_SIGNED: Final[Term] = "margin_explicit_signed"
IMPLICIT: Final[Term] = "margin_implicit"
ABS_IMPLICIT: Final[Term] = "margin_implicit_abs"
MEAN: Final[Term] = "rewards_mean"
VARIANCE: Final[Term] = "rewards_variance"
"""Of the rewards of all candidates."""
UNIFORM: Final[Term] = "uniform"

Terms: TypeAlias = Mapping[Term, FloatArray]
"""The terms of some rows, each float64 [num_rows]."""

if TYPE_CHECKING:
    from pipeline.config import Metric

Need = Literal["moments", "medians", "ranks", "ratio", "scales", "ranges"]
"""What a metric takes from the whole set: mean and spread, median and MAD, ranks, the automatic weight,
Bradley-Terry scales, or ranges of the margins."""

BEES_LOWEST: Final = -2.0
BEES_RARE: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDefinition:
    """One metric: the terms it reads under given settings, its score from them, and what it is, for people."""

    terms: Callable[[Metric], tuple[Term, ...]]
    score: Callable[[Terms, Metric, Fitted], FloatArray]
    formula: str
    source: str
    needs: Callable[[Metric], frozenset[Need]] = lambda _: frozenset()


def alignment_potential(explicit: FloatArray, implicit: FloatArray, weight: float) -> FloatArray:
    """M_AP = explicit - weight * implicit: how far the target margin exceeds the one the policy has already."""
    return explicit - weight * implicit


def implicit_term(metric: Metric) -> Term:
    """The implicit margin as `metric.implicit` takes it."""
    return ABS_IMPLICIT if metric.implicit == "absolute" else IMPLICIT


def _potential_terms(metric: Metric) -> tuple[Term, ...]:
    return (EXPLICIT, implicit_term(metric)) if metric.weight else (EXPLICIT,)


_NORMALISER_NEEDS: Final[Mapping[str, frozenset[Need]]] = {
    "zscore": frozenset({"moments"}),
    "robust": frozenset({"medians"}),
    "rank": frozenset({"ranks"}),
    "none": frozenset(),
}


def _potential_needs(metric: Metric) -> frozenset[Need]:
    needs = _NORMALISER_NEEDS[metric.normalise]
    return needs | {"ratio"} if metric.weight == "auto" else needs


def _potential(terms: Terms, metric: Metric, fitted: Fitted) -> FloatArray:
    scaled = _normalised(terms, fitted)
    weight = fitted.weight if metric.weight == "auto" else metric.weight
    if not weight:
        return scaled[EXPLICIT]
    return alignment_potential(scaled[EXPLICIT], scaled[implicit_term(metric)], weight)


def _normalised(terms: Terms, fitted: Fitted) -> dict[Term, FloatArray]:
    return {
        name: fitted.normalisers[name].apply(values) if name in fitted.normalisers else values
        for name, values in terms.items()
    }


def _quality(terms: Terms, _: Metric, fitted: Fitted) -> FloatArray:
    scaled = _normalised(terms, fitted)
    return scaled[MEAN] - scaled[VARIANCE]


def _implicit(terms: Terms, metric: Metric, _: Fitted) -> FloatArray:
    margin = terms[implicit_term(metric)]
    return margin if metric.order == "largest" else -margin


def _bees_add(terms: Terms, _: Metric, __: Fitted) -> FloatArray:
    return terms[EXPLICIT_SIGNED] + terms[IMPLICIT]


def _bees_mul(terms: Terms, _: Metric, fitted: Fitted) -> FloatArray:
    """Prod P / (prod P + prod(1 - P)) with P = (clip(m, M1, M2) - M1) / (M2 - M1); 1/2 where that is 0 / 0."""
    high = low = np.ones(1)
    for name in (EXPLICIT_SIGNED, IMPLICIT):
        first, last = fitted.ranges[name]
        share = (np.clip(terms[name], first, last) - first) / (last - first)
        high, low = high * share, low * (1.0 - share)
    total = high + low
    score: FloatArray = np.divide(high, total, out=np.full(total.shape, 0.5), where=total > 0)
    return score


def _sigma_gap(terms: Terms, _: Metric, fitted: Fitted) -> FloatArray:
    explicit, implicit = (log_odds_weight(-fitted.scales[name] * terms[name]) for name in (EXPLICIT_SIGNED, IMPLICIT))
    return explicit - implicit


def _both_signed(_: Metric) -> tuple[Term, ...]:
    return (EXPLICIT_SIGNED, IMPLICIT)


METRICS: Final[Mapping[str, MetricDefinition]] = {
    "potential": MetricDefinition(
        terms=_potential_terms,
        needs=_potential_needs,
        score=_potential,
        formula="explicit - weight * implicit, each normalised over the whole set",
        source="arXiv 2503.01864",
    ),
    "explicit": MetricDefinition(
        terms=lambda _: (EXPLICIT,),
        score=lambda terms, _, __: terms[EXPLICIT],
        formula="explicit",
        source="arXiv 2503.01864, rm_margin",
    ),
    "implicit": MetricDefinition(
        terms=lambda metric: (implicit_term(metric),),
        score=_implicit,
        formula="-implicit, or implicit with order: largest",
        source="arXiv 2503.01864, logp_margin",
    ),
    "random": MetricDefinition(
        terms=lambda _: (UNIFORM,),
        score=lambda terms, _, __: terms[UNIFORM],
        formula="uniform in [0, 1) by id and seed",
        source="baseline",
    ),
    "bees-add": MetricDefinition(
        terms=_both_signed,
        score=_bees_add,
        formula="explicit + implicit, both signed",
        source="arXiv 2502.14560, BeeS-ADD",
    ),
    "bees-mul": MetricDefinition(
        terms=_both_signed,
        needs=lambda _: frozenset({"ranges"}),
        score=_bees_mul,
        formula="prod P / (prod P + prod (1 - P)), P = a signed margin clipped to [-2, M2] and put on [0, 1]; "
        "M2 the 30th largest value",
        source="arXiv 2502.14560, BeeS-MUL",
    ),
    "difficulty": MetricDefinition(
        terms=lambda _: (IMPLICIT,),
        score=lambda terms, _, __: -terms[IMPLICIT],
        formula="-implicit, signed, under dpo",
        source="arXiv 2508.04149",
    ),
    "sigma-gap": MetricDefinition(
        terms=_both_signed,
        needs=lambda _: frozenset({"scales"}),
        score=_sigma_gap,
        formula="sigma(a * explicit) - sigma(b * implicit), both signed; a and b fit the labels best, 1% of which are "
        "taken to be wrong",
        source="ours: Bradley and Terry 1952 for both margins",
    ),
    "divergence": MetricDefinition(
        terms=lambda _: (EXPLICIT_SIGNED,),
        score=lambda terms, _, __: terms[EXPLICIT_SIGNED],
        formula="mean of the signed margins of several rewards: the most negative Preference Divergence first. That is "
        "minus their sum up to a factor, which moves no rank",
        source="arXiv 2508.07638, PD; the factor was not verified",
    ),
    "quality": MetricDefinition(
        terms=lambda _: (MEAN, VARIANCE),
        needs=lambda metric: _NORMALISER_NEEDS[metric.normalise],
        score=_quality,
        formula="mean - variance of the rewards of all candidates, each normalised over the whole set",
        source="arXiv 2505.23114, Alignment Data Map: high mean, low variance; the score that joins them is ours",
    ),
}
