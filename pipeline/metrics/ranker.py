"""A metric ready to score rows: which quantities it reads, the terms it makes of them, and the score from the terms.

    columns --Quantity--> one float64 a row --Term--> the margin as the metric takes it --potential.METRICS--> score

Everything is element-wise, so blocks and order of rows never move a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.metrics import ids
from pipeline.metrics.columns import FloatArray, single_array
from pipeline.metrics.length import LengthFit
from pipeline.metrics.margins import (
    EXPLICIT_COLUMNS,
    candidates_mean,
    candidates_range,
    candidates_variance,
    explicit_margin,
    implicit_margin,
    length_gap,
    length_of_both,
    length_ratio,
    objective_columns,
)
from pipeline.metrics.normalise import Fitted
from pipeline.metrics.potential import (
    ABS_IMPLICIT,
    EXPLICIT,
    EXPLICIT_SIGNED,
    IMPLICIT,
    MEAN,
    METRICS,
    UNIFORM,
    VARIANCE,
    Need,
    Term,
    Terms,
    implicit_term,
)
from pipeline.metrics.ratio import RATIO_METHODS

if TYPE_CHECKING:
    from pipeline.config import Metric, Objective

_BLOCK: Final = 2**16
QuantityKind = Literal[
    "explicit",
    "combined",
    "residual",
    "candidates",
    "mean",
    "variance",
    "implicit",
    "uniform",
    "length_gap",
    "length_ratio",
    "length",
]
_LENGTHS: Final = {"length_gap": length_gap, "length_ratio": length_ratio, "length": length_of_both}
_OF_CANDIDATES: Final = {"candidates": candidates_range, "mean": candidates_mean, "variance": candidates_variance}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One number of every row, computed from scored columns.

    explicit: signed margin of one reward. combined: that of several, which is made out of theirs for all rows (see
    `combine`). residual: the margin of one or several without what the length gap explains of it (see `length`).
    candidates, mean, variance: range, mean and variance of the rewards of all candidates. implicit: signed implicit
    margin under `objective`. uniform: hash of the id by `seed`, in [0, 1). length_gap: tokens of chosen minus those of
    rejected. length_ratio: tokens of the longer response over those of the shorter one. length: tokens of both.
    """

    kind: QuantityKind
    objective: Objective | None = None
    seed: int = 0
    rewards: tuple[str, ...] = ("",)

    @property
    def parts(self) -> tuple[Quantity, ...]:
        """The quantities to read from columns: itself, or what it is made of."""
        if self.kind not in ("combined", "residual"):
            return (self,)
        margins = tuple(Quantity(kind="explicit", rewards=(name,)) for name in self.rewards)
        return (*margins, LENGTH_GAP) if self.kind == "residual" else margins

    @property
    def columns(self) -> tuple[str, ...]:
        """The scored columns it is computed from."""
        if self.kind == "residual":
            return tuple(name for part in self.parts for name in part.columns)
        if self.kind == "uniform":
            return (schema.ID,)
        if self.kind in _LENGTHS:
            return (schema.NUM_TOKENS_CHOSEN, schema.NUM_TOKENS_REJECTED)
        if self.objective is not None:
            return objective_columns(self.objective)
        if self.kind in _OF_CANDIDATES:
            return EXPLICIT_COLUMNS["candidates"]
        return tuple(column for name in self.rewards for column in schema.reward_columns(name))

    def of(self, table: pa.Table | pa.RecordBatch) -> FloatArray:
        """Its values, float64 [num_rows]; NaN or infinite where a row does not have it. May be read-only.

        Not for a combined one, which is made of its `parts`.

        Raises:
            SchemaError: a column is missing or of another type.
        """
        if self.kind == "uniform":
            return ids.uniform(single_array(table, schema.ID), self.seed)
        if self.objective is not None:
            return implicit_margin(table, self.objective)
        if self.kind in _LENGTHS:
            return _LENGTHS[self.kind](table)
        of_candidates = _OF_CANDIDATES.get(self.kind)
        return explicit_margin(table, "signed", self.rewards[0]) if of_candidates is None else of_candidates(table)


SIGNED_EXPLICIT: Final = Quantity(kind="explicit")
LENGTH_GAP: Final = Quantity(kind="length_gap")
LENGTH_RATIO: Final = Quantity(kind="length_ratio")
LENGTH: Final = Quantity(kind="length")

Quantities: TypeAlias = Mapping[Quantity, FloatArray]
"""Quantities of some rows, each float64 [num_rows]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranker:
    """A metric under an objective; `seed` is that of the metric random."""

    objective: Objective
    metric: Metric
    seed: int = 0

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

    def quantity(self, term: Term) -> Quantity:
        """The quantity that a term is made of."""
        if term == UNIFORM:
            return Quantity(kind="uniform", seed=self.seed)
        if term in (MEAN, VARIANCE):
            return Quantity(kind="mean" if term == MEAN else "variance")
        if term in (IMPLICIT, ABS_IMPLICIT):
            return Quantity(kind="implicit", objective=self.objective)
        if self.metric.takes_out_length:
            return self.residual
        by_candidates = term == EXPLICIT and self.metric.explicit == "candidates"
        return Quantity(kind="candidates") if by_candidates else self.signed

    @property
    def signed(self) -> Quantity:
        """The signed explicit margin."""
        combine = self.metric.combine
        return SIGNED_EXPLICIT if combine is None else Quantity(kind="combined", rewards=combine.members)

    @property
    def residual(self) -> Quantity:
        """The same without what the length gap explains."""
        return Quantity(kind="residual", rewards=self.signed.rewards)

    def ingredients(self, term: Term) -> tuple[Quantity, ...]:
        """What must be known of a row for a term of it."""
        quantity = self.quantity(term)
        return (self.signed, LENGTH_GAP) if quantity.kind == "residual" else (quantity,)

    @property
    def columns(self) -> tuple[str, ...]:
        """The scored columns that the score is computed from."""
        return tuple(dict.fromkeys(name for term in self.terms for name in self.quantity(term).columns))

    def read(self, table: pa.Table | pa.RecordBatch) -> Quantities:
        """The quantities that the score is computed from. Raises a SchemaError as `Quantity.of`."""
        return {quantity: quantity.of(table) for term in self.terms for quantity in self.quantity(term).parts}

    def without_length(self, quantities: Quantities, length: LengthFit | None) -> Quantities:
        """The quantities with the residual margin, where the metric takes it and it is not there."""
        if length is None or self.residual in quantities:
            return quantities
        return {**quantities, self.residual: quantities[self.signed] - length.of(quantities[LENGTH_GAP])}

    def term(self, quantities: Quantities, term: Term) -> FloatArray:
        """A term of every row, float64 [num_rows]."""
        values = quantities[self.quantity(term)]
        absolute = term == ABS_IMPLICIT or (term == EXPLICIT and self.metric.explicit == "absolute")
        return np.abs(values) if absolute else values

    def score(self, quantities: Quantities, fitted: Fitted) -> FloatArray:
        """Scores, float64 [num_rows], never -0.0; NaN where a term is NaN or infinite.

        A score may overflow to an infinity although its terms are finite.
        """
        num_rows = next(iter(quantities.values())).size
        scores = np.empty(num_rows)
        for start in range(0, num_rows, _BLOCK):
            rows = slice(start, start + _BLOCK)
            block: Quantities = {quantity: values[rows] for quantity, values in quantities.items()}
            block = self.without_length(block, fitted.length)
            terms: Terms = {term: self.term(block, term) for term in self.terms}
            with np.errstate(invalid="ignore", over="ignore"):
                scores[rows] = METRICS[self.metric.name].score(terms, self.metric, fitted) + 0.0
                if not np.isfinite(sum(values.sum() for values in terms.values())):
                    for values in terms.values():
                        scores[rows][~np.isfinite(values)] = np.nan
        return scores
