"""A finished selection: the rule that says which rows are kept, and the numbers it was found with.

The rule is a threshold and a boundary id, one for each group, so it needs the same few bytes for ten rows and for a
billion, and can be applied to any part of the scored dataset on its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Metric, Objective, Select
from pipeline.errors import SchemaError
from pipeline.metrics.columns import BoolArray, FloatArray, single_array
from pipeline.metrics.fitted import Fitted
from pipeline.metrics.margins import EXPLICIT_COLUMNS
from pipeline.metrics.ranker import Ranker
from pipeline.metrics.terms import EXPLICIT, IMPLICIT, TermCache
from pipeline.selection.labels import contradicted, swap_sides
from pipeline.selection.source import Block, Positions, no_positions, unique_rows
from pipeline.selection.streams import Candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCut:
    """What is kept of one group: scores above `threshold`, and those that equal it up to `boundary_id`.

    threshold: -inf keeps every candidate, inf none. boundary_id: largest id kept among the rows at the threshold; None
    where all of them are. num_tied, num_tied_kept: rows at the threshold, and how many of them are kept.
    num_candidates: rows that the other rules leave.
    """

    threshold: float
    boundary_id: str | None = None
    k: int
    num_tied: int = 0
    num_tied_kept: int = 0
    num_candidates: int

    def mask(self, scores: FloatArray, ids: pa.Array | None) -> BoolArray:
        """Which of the candidates are kept, bool [num_rows]; ids are read if there is a boundary id."""
        if self.boundary_id is None or ids is None:
            every: BoolArray = scores >= self.threshold
            return every
        keep: BoolArray = scores > self.threshold
        tied = np.flatnonzero(scores == self.threshold)
        low = pc.less_equal(ids.take(pa.array(tied)), self.boundary_id)
        keep[tied[low.to_numpy(zero_copy_only=False)]] = True
        return keep

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite threshold is null."""
        return {
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
            "boundary_id": self.boundary_id,
            "k": self.k,
            "num_tied": self.num_tied,
            "num_tied_kept": self.num_tied_kept,
            "num_candidates": self.num_candidates,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Which rows of a scored dataset are kept.

    cuts: by group, in the order of `groups`; one where select.group_by is not set.
    num_rows: scored rows read, duplicates included. num_ranked: those with a score. num_contradicted: pairs whose
    label the reward contradicts, where select.labels is not keep.
    excluded: rows that were no candidates, by reason: duplicate, a term that is not finite, or a rule.
    fitted: what the metric took from the whole set. id_digest: names the set of kept ids, whatever their order.
    duplicates, left_out: ascending positions, among the scored rows, of repeats and of rows that a rule left out.
    """

    objective: Objective | None
    metric: Metric
    select: Select
    fitted: Fitted
    cuts: Sequence[GroupCut]
    groups: tuple[str, ...] = ()
    num_rows: int
    num_ranked: int
    excluded: Mapping[str, int]
    num_contradicted: int = 0
    id_digest: str = ""
    duplicates: Positions = field(default_factory=no_positions, repr=False)
    left_out: Positions = field(default_factory=no_positions, repr=False)

    @property
    def k(self) -> int:
        """Rows kept."""
        return sum(cut.k for cut in self.cuts)

    @property
    def threshold(self) -> float:
        """The lowest threshold of any group that keeps rows."""
        return min((cut.threshold for cut in self.cuts if cut.k), default=math.inf)

    @property
    def boundary_id(self) -> str | None:
        """Largest id kept at the threshold, where there is one group; None where all of them are kept."""
        return self.cuts[0].boundary_id if len(self.cuts) == 1 else None

    @property
    def num_tied(self) -> int:
        """Rows at the thresholds."""
        return sum(cut.num_tied for cut in self.cuts)

    @property
    def num_tied_kept(self) -> int:
        """Rows at the thresholds that are kept."""
        return sum(cut.num_tied_kept for cut in self.cuts)

    @property
    def ranker(self) -> Ranker:
        """The metric that the rows were ranked by."""
        return Ranker(objective=self.objective, metric=self.metric, seed=self.select.seed)

    @cached_property
    def candidates(self) -> Candidates:
        """The rows that may be kept."""
        return Candidates(
            ranker=self.ranker,
            fitted=self.fitted,
            min_score=self.select.min_score,
            max_score=self.select.max_score,
            left_out=self.left_out,
            group_by=self.select.group_by,
            groups=self.groups,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The scored columns that `mask` needs; `apply` adds the margins of whatever other columns there are."""
        labels = () if self.select.labels == "keep" else EXPLICIT_COLUMNS["signed"]
        ids = (schema.ID,) if self._reads_ids else ()
        return tuple(dict.fromkeys((*ids, *self.candidates.columns, *labels)))

    @property
    def _reads_ids(self) -> bool:
        return any(cut.boundary_id is not None for cut in self.cuts)

    def mask(self, table: pa.Table | pa.RecordBatch, *, first_row: int = 0) -> BoolArray:
        """Which rows of a part of the scored dataset are kept, bool [num_rows].

        first_row: position of the table's first row among all scored rows; it matters where rows are left out.
        """
        return self._treated_mask(self._relabelled(table), first_row)

    def mask_of(self, block: Block, cache: TermCache) -> BoolArray:
        """Which rows of a block are kept; its duplicates are gone and its labels treated."""
        scores, mask = self.candidates.scores(block, cache)
        ids = single_array(block.rows, schema.ID) if self._reads_ids else None
        if not self.groups:
            keep = self.cuts[0].mask(scores, ids)
            return keep if mask is None else keep & mask
        keep = np.zeros(scores.shape, dtype=np.bool_)
        for cut, rows in zip(self.cuts, self.candidates.rows_by_group(block, mask), strict=True):
            keep[rows] = cut.mask(scores[rows], None if ids is None else ids.take(pa.array(rows)))
        return keep

    def apply(self, table: pa.Table, *, first_row: int = 0) -> pa.Table:
        """The kept rows of a part of the scored dataset, in its order, with the subset columns appended.

        Labels are treated as select.labels says. A margin that the metric does not read is null where it cannot be
        computed.
        first_row: position of the table's first row among all scored rows; it matters where rows are left out.

        Raises:
            SchemaError: a column is missing, or a subset column is there already.
        """
        taken = [f.name for f in schema.SUBSET_FIELDS if f.name in table.schema.names]
        if taken:
            raise SchemaError(
                f"{taken} are in the table already, so it is a subset. Apply the selection to the scored dataset."
            )
        treated = self._relabelled(table)
        kept = treated.filter(pa.array(self._treated_mask(treated, first_row)))
        columns = (*subset_margins(kept, self.ranker), self.ranker.score(kept, self.fitted))
        for subset_field, values in zip(schema.SUBSET_FIELDS, columns, strict=True):
            kept = kept.append_column(subset_field, pa.array(values, mask=np.isnan(values)))
        return kept

    def to_dict(self) -> dict[str, Any]:
        """Everything but the positions, JSON-ready, for the manifest."""
        single = self.cuts[0].to_dict() if len(self.cuts) == 1 and not self.groups else {"k": self.k}
        groups = {name: cut.to_dict() for name, cut in zip(self.groups, self.cuts, strict=False)}
        return {
            "objective": None if self.objective is None else self.objective.model_dump(mode="json"),
            "metric": self.metric.model_dump(mode="json"),
            "select": self.select.model_dump(mode="json", exclude={"engine"}),
            "fitted": self.fitted.to_dict(),
            **single,
            "groups": groups if self.groups else None,
            "num_rows": self.num_rows,
            "num_ranked": self.num_ranked,
            "excluded": dict(self.excluded),
            "num_contradicted": self.num_contradicted,
            "id_digest": self.id_digest,
        }

    def _relabelled(self, table: Any) -> Any:
        return swap_sides(table, contradicted(table)) if self.select.labels == "swap" else table

    def _treated_mask(self, table: pa.Table | pa.RecordBatch, first_row: int) -> BoolArray:
        names = [name for name in self.columns if name in table.schema.names]
        narrow = table.select(names)
        batch = narrow if isinstance(narrow, pa.RecordBatch) else _one_batch(narrow)
        keep = self.mask_of(Block(rows=batch, first_row=first_row, kept=None), TermCache(batch))
        if self.select.labels == "drop":
            keep &= ~contradicted(batch)
        unique = unique_rows(first_row, table.num_rows, self.duplicates)
        return keep if unique is None else keep & unique


def subset_margins(table: pa.Table | pa.RecordBatch, ranker: Ranker) -> tuple[FloatArray, FloatArray]:
    """Explicit margin as the metric takes it and signed implicit margin; NaN where there is none."""
    names = table.schema.names
    missing = np.full(table.num_rows, np.nan)
    has_explicit = all(name in names for name in ranker.columns_of(EXPLICIT))
    has_implicit = all(name in names for name in ranker.columns_of(IMPLICIT))
    return (
        ranker.reading.compute(table, EXPLICIT) if has_explicit else missing,
        ranker.reading.compute(table, IMPLICIT) if has_implicit else missing,
    )


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    if len(batches) == 1:
        return batches[0]
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in table.schema], schema=table.schema)
