"""A finished selection: the rule that says which rows are kept, and the numbers it was found with.

The rule is a threshold and a boundary id, so it needs the same few bytes for ten rows and for a billion, and can be
applied to any part of the scored dataset on its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Metric, Objective, Select
from pipeline.errors import SchemaError
from pipeline.metrics.columns import BoolArray, FloatArray, single_array
from pipeline.metrics.margins import explicit_margin, implicit_margin
from pipeline.metrics.moments import Moments
from pipeline.metrics.potential import EXPLICIT, IMPLICIT, Ranker
from pipeline.selection.source import Positions, unique_rows


def no_duplicates() -> Positions:
    """An empty array of positions."""
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Keeps a row if its score is above `threshold`, or equals it and its id is at most `boundary_id`.

    boundary_id: largest id kept among the rows at the threshold; None where all of them are kept.
    num_tied, num_tied_kept: rows at the threshold, and how many of them are kept.
    num_rows: scored rows read, duplicates included. num_ranked: those with a score.
    excluded: rows that were not ranked, by reason: duplicate, or a term that is not finite.
    moments: of the z-scored terms over the ranked rows; empty where the metric needs none.
    id_digest: names the set of kept ids, whatever their order; 16 hex digits.
    duplicates: ascending positions, among the scored rows, of the repeats that are skipped.
    """

    objective: Objective
    metric: Metric
    select: Select
    threshold: float
    boundary_id: str | None
    k: int
    num_tied: int
    num_tied_kept: int
    num_rows: int
    num_ranked: int
    excluded: Mapping[str, int]
    moments: Mapping[str, Moments]
    id_digest: str = ""
    duplicates: Positions = field(default_factory=no_duplicates, repr=False)

    @property
    def ranker(self) -> Ranker:
        """The metric that the rows were ranked by."""
        return Ranker(objective=self.objective, metric=self.metric, seed=self.select.seed)

    @property
    def columns(self) -> tuple[str, ...]:
        """The scored columns that `mask` needs; `apply` adds the margins of whatever other columns there are."""
        names = (schema.ID, *self.ranker.columns)
        return tuple(dict.fromkeys(names))

    def mask(self, table: pa.Table | pa.RecordBatch, *, first_row: int = 0) -> BoolArray:
        """Which rows of a part of the scored dataset are kept, bool [num_rows].

        first_row: position of the table's first row among all scored rows; it matters where there are duplicates.
        """
        keep = self.mask_of(self.ranker.score(table, self.moments), single_array(table, schema.ID))
        unique = unique_rows(first_row, table.num_rows, self.duplicates)
        return keep if unique is None else keep & unique

    def mask_of(self, scores: FloatArray, ids: pa.Array) -> BoolArray:
        """Which rows are kept, from their scores and ids; duplicates are not looked at."""
        keep = scores > self.threshold
        tied = np.flatnonzero(scores == self.threshold)
        if self.boundary_id is not None and tied.size:
            low = pc.less_equal(ids.take(pa.array(tied)), self.boundary_id)
            tied = tied[low.to_numpy(zero_copy_only=False)]
        keep[tied] = True
        return keep

    def apply(self, table: pa.Table, *, first_row: int = 0) -> pa.Table:
        """The kept rows of a part of the scored dataset, in its order, with the subset columns appended.

        A margin that the metric does not read is null where it cannot be computed.
        first_row: position of the table's first row among all scored rows; it matters where there are duplicates.

        Raises:
            SchemaError: a column is missing, or a subset column is there already.
        """
        taken = [f.name for f in schema.SUBSET_FIELDS if f.name in table.schema.names]
        if taken:
            raise SchemaError(
                f"{taken} are in the table already, so it is a subset. Apply the selection to the scored dataset."
            )
        kept = table.filter(pa.array(self.mask(table, first_row=first_row)))
        columns = (*subset_margins(kept, self.ranker), self.ranker.score(kept, self.moments))
        for subset_field, values in zip(schema.SUBSET_FIELDS, columns, strict=True):
            kept = kept.append_column(subset_field, pa.array(values, mask=np.isnan(values)))
        return kept

    def to_dict(self) -> dict[str, Any]:
        """Everything but the duplicates' positions, JSON-ready, for the manifest."""
        return {
            "objective": self.objective.model_dump(mode="json"),
            "metric": self.metric.model_dump(mode="json"),
            "select": self.select.model_dump(mode="json"),
            "threshold": self.threshold,
            "boundary_id": self.boundary_id,
            "k": self.k,
            "num_tied": self.num_tied,
            "num_tied_kept": self.num_tied_kept,
            "num_rows": self.num_rows,
            "num_ranked": self.num_ranked,
            "excluded": dict(self.excluded),
            "moments": {name: dict(moments.to_dict()) for name, moments in self.moments.items()},
            "id_digest": self.id_digest,
        }


def subset_margins(table: pa.Table | pa.RecordBatch, ranker: Ranker) -> tuple[FloatArray, FloatArray]:
    """Explicit margin as the metric takes it and signed implicit margin; NaN where there is none."""
    names = table.schema.names
    missing = np.full(table.num_rows, np.nan)
    has_explicit = all(name in names for name in ranker.columns_of(EXPLICIT))
    has_implicit = all(name in names for name in ranker.columns_of(IMPLICIT))
    return (
        explicit_margin(table, ranker.metric.explicit) if has_explicit else missing,
        implicit_margin(table, ranker.objective) if has_implicit else missing,
    )
