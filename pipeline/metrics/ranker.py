"""A metric under an objective and a seed: which columns it reads, and the scores of a table's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.metrics.fitted import Fitted
from pipeline.metrics.kernels import Scales, potential_scores
from pipeline.metrics.normalise import Scale
from pipeline.metrics.potential import METRICS, Need, implicit_term
from pipeline.metrics.ratio import RATIO_METHODS
from pipeline.metrics.terms import EXPLICIT, EXPLICIT_SIGNED, IMPLICIT, Reading, Term, TermCache, Terms, finite_rows

if TYPE_CHECKING:
    from pipeline.config import Metric, Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranker:
    """A metric, ready to score tables; higher scores are better.

    objective: None reads the margins from columns named margin_explicit and margin_implicit.
    """

    objective: Objective | None
    metric: Metric
    seed: int = 0

    @property
    def reading(self) -> Reading:
        """Where the terms come from."""
        return Reading(objective=self.objective, explicit=self.metric.explicit, seed=self.seed)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms that the score is computed from."""
        return METRICS[self.metric.name].terms(self.metric)

    @property
    def needs(self) -> frozenset[Need]:
        """What must be known of the whole set before a row can be scored."""
        return METRICS[self.metric.name].needs(self.metric)

    @property
    def sampled_terms(self) -> tuple[Term, ...]:
        """The terms whose joint distribution must be known: those of an automatic weight or of fitted scales."""
        if "ratio" in self.needs and self.metric.ratio != "std":
            labels: tuple[Term, ...] = (EXPLICIT_SIGNED, IMPLICIT)
            signed = labels if RATIO_METHODS[self.metric.ratio].reads_labels else ()
            return (EXPLICIT, implicit_term(self.metric), *signed)
        return (EXPLICIT_SIGNED, IMPLICIT) if "scales" in self.needs else ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that scores are computed from."""
        return tuple(dict.fromkeys(name for term in self.terms for name in self.columns_of(term)))

    def columns_of(self, term: Term) -> tuple[str, ...]:
        """The columns that one term is computed from."""
        return self.reading.columns_of(term)

    def compute(self, rows: pa.Table | pa.RecordBatch | TermCache) -> Terms:
        """The terms of every row; NaN or infinite where a row does not have one.

        Raises:
            SchemaError: a column is missing or of another type.
        """
        cache = rows if isinstance(rows, TermCache) else TermCache(rows)
        return {term: cache.get(self.reading, term) for term in self.terms}

    def score_terms(self, terms: Terms, fitted: Fitted) -> FloatArray:
        """Scores, float64 [num_rows], never -0.0. NaN terms give NaN scores."""
        with np.errstate(invalid="ignore", over="ignore"):
            return METRICS[self.metric.name].score(terms, self.metric, fitted) + 0.0

    def score(self, rows: pa.Table | pa.RecordBatch | TermCache, fitted: Fitted) -> FloatArray:
        """Scores of the rows, float64 [num_rows]; NaN where a term is NaN or infinite."""
        scores, keep = self.scored(rows if isinstance(rows, TermCache) else TermCache(rows), fitted)
        return scores if keep is None else np.where(keep, scores, np.nan)

    def scored(self, cache: TermCache, fitted: Fitted) -> tuple[FloatArray, BoolArray | None]:
        """Scores of the rows, and which of them have all terms (None: all); the others' scores mean nothing."""
        weight = self.fixed_weight
        if weight is not None:
            return self._scored_by_kernel(cache, fitted, weight)
        terms = self.compute(cache)
        return self.score_terms(terms, fitted), finite_rows(terms)

    @property
    def fixed_weight(self) -> float | None:
        """The weight between z-scores where the score is that of z-scored margins with a known weight; else None."""
        metric = self.metric
        if metric.name != "potential" or metric.normalise != "zscore":
            return None
        if metric.weight == "auto":
            return 1.0 if metric.ratio == "std" else None
        return metric.weight or None

    def _scored_by_kernel(self, cache: TermCache, fitted: Fitted, weight: float) -> tuple[FloatArray, BoolArray | None]:
        """The same, to the bit, in one reading."""
        explicit, implicit = (cache.get(self.reading, term) for term in (EXPLICIT, IMPLICIT))
        of_explicit, of_implicit = (fitted.normalisers[term] for term in self.terms)
        assert isinstance(of_explicit, Scale) and isinstance(of_implicit, Scale)  # noqa: S101, PT018
        scales = Scales(of_explicit.center, of_explicit.spread, of_implicit.center, of_implicit.spread, weight)
        scores: FloatArray = np.empty(explicit.size)
        absolute = self.metric.implicit == "absolute"
        if not potential_scores(explicit, implicit, scales, scores, absolute=absolute):
            return scores, None
        keep: BoolArray = np.isfinite(explicit) & np.isfinite(implicit)
        return scores, keep
