"""The quantities that metrics combine, computed from scored columns: one float64 array a term, one value a row.

A Reading says where a metric's margins come from: computed from the raw columns under an objective, or read as they
stand from columns named margin_explicit and margin_implicit. Terms are element-wise, so that blocks and order of rows
never move one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.metrics import ids
from pipeline.metrics.columns import BoolArray, FloatArray, float_column, single_array
from pipeline.metrics.margins import EXPLICIT_COLUMNS, explicit_margin, implicit_margin
from pipeline.metrics.objectives import objective_columns

if TYPE_CHECKING:
    from pipeline.config import Explicit, Objective

Term = Literal["margin_explicit", "margin_explicit_signed", "margin_implicit", "margin_implicit_abs", "uniform"]

EXPLICIT: Final[Term] = "margin_explicit"
"""The explicit margin as `metric.explicit` takes it."""
EXPLICIT_SIGNED: Final[Term] = "margin_explicit_signed"
IMPLICIT: Final[Term] = "margin_implicit"
ABS_IMPLICIT: Final[Term] = "margin_implicit_abs"
UNIFORM: Final[Term] = "uniform"

Terms: TypeAlias = Mapping[Term, FloatArray]
"""The terms of some rows, each float64 [num_rows]."""

TermKey: TypeAlias = "tuple[Term, Objective | None, Explicit | None, int | None]"
"""What decides the values of a term, and nothing else: terms of equal keys are computed once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Where terms come from.

    objective: gives the implicit reward; None takes both margins from columns of these names, as they stand.
    explicit: which explicit margin EXPLICIT is. seed: of UNIFORM.
    """

    objective: Objective | None
    explicit: Explicit
    seed: int = 0

    def key(self, term: Term) -> TermKey:
        """Terms of equal keys have equal values."""
        if term == UNIFORM:
            return (term, None, None, self.seed)
        given = int(self.objective is None)
        if term == EXPLICIT:
            return (EXPLICIT_SIGNED if self._kind == "signed" else term, None, self._kind, given)
        if term == EXPLICIT_SIGNED:
            return (term, None, "signed", given)
        return (term, self.objective, None, None)

    def columns_of(self, term: Term) -> tuple[str, ...]:
        """The columns that a term is computed from."""
        if term == UNIFORM:
            return (schema.ID,)
        if self.objective is None:
            return (schema.MARGIN_EXPLICIT if term in (EXPLICIT, EXPLICIT_SIGNED) else schema.MARGIN_IMPLICIT,)
        if term in (EXPLICIT, EXPLICIT_SIGNED):
            return EXPLICIT_COLUMNS[self._kind if term == EXPLICIT else "signed"]
        return objective_columns(self.objective)

    def compute(self, table: pa.Table | pa.RecordBatch, term: Term) -> FloatArray:
        """A term of every row, float64 [num_rows]; NaN or infinite where a row does not have it. May be read-only.

        Raises:
            SchemaError: a column is missing or of another type.
        """
        if term == UNIFORM:
            return ids.uniform(single_array(table, schema.ID), self.seed)
        if term in (EXPLICIT, EXPLICIT_SIGNED):
            kind = self._kind if term == EXPLICIT else "signed"
            if self.objective is not None:
                return explicit_margin(table, kind)
            margin = float_column(table, schema.MARGIN_EXPLICIT)
            return np.abs(margin) if kind == "absolute" else margin
        margin = self._implicit(table)
        return np.abs(margin) if term == ABS_IMPLICIT else margin

    def _implicit(self, table: pa.Table | pa.RecordBatch) -> FloatArray:
        if self.objective is None:
            return float_column(table, schema.MARGIN_IMPLICIT)
        return implicit_margin(table, self.objective)

    @property
    def _kind(self) -> Explicit:
        # A column of margins stands for whatever its maker took, candidates included.
        return "signed" if self.objective is None and self.explicit == "candidates" else self.explicit


class TermCache:
    """The terms of one block of rows, each computed when first asked for."""

    def __init__(self, table: pa.Table | pa.RecordBatch) -> None:
        self.table = table
        self._values: dict[TermKey, FloatArray] = {}

    def get(self, reading: Reading, term: Term) -> FloatArray:
        """A term of every row of the block."""
        key = reading.key(term)
        if key not in self._values:
            base = reading.key(IMPLICIT)
            if term == ABS_IMPLICIT and base in self._values:
                self._values[key] = np.abs(self._values[base])
            else:
                self._values[key] = reading.compute(self.table, term)
        return self._values[key]


def finite_rows(terms: Terms) -> BoolArray | None:
    """Mask of the rows whose terms are all finite; None where that is every row."""
    keep: BoolArray | None = None
    for values in terms.values():
        finite = np.isfinite(values)
        if not finite.all():
            keep = finite if keep is None else keep & finite
    return keep
