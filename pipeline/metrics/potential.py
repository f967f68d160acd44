"""What pairs are ranked by: the alignment potential, and the simpler metrics it is measured against.

The only place of the formula M_AP (arXiv 2503.01864). A Ranker is one metric under one objective: it knows the
scored columns it reads, turns a table into its terms (one float64 array each), and the terms into scores, higher is
better. Scores are element-wise, so that blocks and order of rows never move one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import Metric, Objective
from pipeline.metrics import ids
from pipeline.metrics.columns import BoolArray, FloatArray, single_array
from pipeline.metrics.margins import EXPLICIT_COLUMNS, explicit_margin, implicit_margin
from pipeline.metrics.moments import Moments
from pipeline.metrics.objectives import objective_columns

EXPLICIT: Final = schema.MARGIN_EXPLICIT
IMPLICIT: Final = schema.MARGIN_IMPLICIT
ABS_IMPLICIT: Final = "margin_implicit_abs"
UNIFORM: Final = "uniform"

Terms: TypeAlias = Mapping[str, FloatArray]
"""The quantities a metric combines, by name, each float64 [num_rows]."""

MomentsByTerm: TypeAlias = Mapping[str, Moments]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDefinition:
    """One metric: the terms it reads under given settings, and its score from them."""

    terms: Callable[[Metric], tuple[str, ...]]
    score: Callable[[Terms, Metric], FloatArray]


def alignment_potential(explicit: FloatArray, implicit: FloatArray, weight: float) -> FloatArray:
    """M_AP = explicit - weight * implicit: how far the target margin exceeds the one the policy has already."""
    return explicit - weight * implicit


def _implicit(metric: Metric) -> str:
    return ABS_IMPLICIT if metric.implicit == "absolute" else IMPLICIT


def _potential_terms(metric: Metric) -> tuple[str, ...]:
    return (EXPLICIT, _implicit(metric)) if metric.weight else (EXPLICIT,)


def _potential(terms: Terms, metric: Metric) -> FloatArray:
    if not metric.weight:
        return terms[EXPLICIT]
    return alignment_potential(terms[EXPLICIT], terms[_implicit(metric)], metric.weight)


def _least_separated(terms: Terms, metric: Metric) -> FloatArray:
    return -terms[_implicit(metric)]


METRICS: Final[Mapping[str, MetricDefinition]] = {
    "potential": MetricDefinition(terms=_potential_terms, score=_potential),
    "explicit": MetricDefinition(terms=lambda _: (EXPLICIT,), score=lambda terms, _: terms[EXPLICIT]),
    "implicit": MetricDefinition(terms=lambda metric: (_implicit(metric),), score=_least_separated),
    "random": MetricDefinition(terms=lambda _: (UNIFORM,), score=lambda terms, _: terms[UNIFORM]),
}


def finite_rows(terms: Terms) -> BoolArray | None:
    """Mask of the rows whose terms are all finite; None where that is every row."""
    keep: BoolArray | None = None
    for values in terms.values():
        finite = np.isfinite(values)
        if not finite.all():
            keep = finite if keep is None else keep & finite
    return keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranker:
    """A metric under an objective and a seed, ready to score tables."""

    objective: Objective
    metric: Metric
    seed: int = 0

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms that the score is computed from."""
        return METRICS[self.metric.name].terms(self.metric)

    @property
    def needs_moments(self) -> bool:
        """Whether terms are z-scored over the whole set before they are combined."""
        return self.metric.name == "potential" and self.metric.normalise == "zscore"

    @property
    def columns(self) -> tuple[str, ...]:
        """The scored columns that the terms are computed from."""
        return tuple(name for term in self.terms for name in self.columns_of(term))

    def columns_of(self, term: str) -> tuple[str, ...]:
        """The scored columns that one term is computed from."""
        if term == EXPLICIT:
            return EXPLICIT_COLUMNS[self.metric.explicit]
        return (schema.ID,) if term == UNIFORM else objective_columns(self.objective)

    def compute(self, table: pa.Table | pa.RecordBatch) -> Terms:
        """The terms of every row; NaN or infinite where a row does not have one.

        Raises:
            SchemaError: a column is missing or of another type.
        """
        return {term: self._term(table, term) for term in self.terms}

    def score_terms(self, terms: Terms, moments: MomentsByTerm) -> FloatArray:
        """Scores, float64 [num_rows], never -0.0. NaN terms give NaN scores. `moments` is read if needs_moments.

        Raises:
            DataError: a term to be z-scored has no spread.
        """
        if self.needs_moments:
            terms = {name: moments[name].zscore(values, name=name) for name, values in terms.items()}
        with np.errstate(invalid="ignore", over="ignore"):
            return METRICS[self.metric.name].score(terms, self.metric) + 0.0

    def score(self, table: pa.Table | pa.RecordBatch, moments: MomentsByTerm) -> FloatArray:
        """Scores of a table's rows, float64 [num_rows], higher is better; NaN where a term is NaN or infinite."""
        terms = self.compute(table)
        scores = self.score_terms(terms, moments)
        keep = finite_rows(terms)
        return scores if keep is None else np.where(keep, scores, np.nan)

    def _term(self, table: pa.Table | pa.RecordBatch, term: str) -> FloatArray:
        if term == EXPLICIT:
            return explicit_margin(table, self.metric.explicit)
        if term == UNIFORM:
            return ids.uniform(single_array(table, schema.ID), self.seed)
        margin = implicit_margin(table, self.objective)
        return np.abs(margin) if term == ABS_IMPLICIT else margin
