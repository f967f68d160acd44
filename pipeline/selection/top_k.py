"""Exact global top-k over a streamed source, ties by id, in constant memory.

Four readings at most where scores are distinct: moments, scores around the guessed threshold, scores in the bucket
of the threshold if those were too many to hold, and a last one that counts and digests what the rule keeps. The
result depends on the set of rows alone: on neither their order, nor the tables they come in, nor the guess.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import Metric, Objective, Select
from pipeline.errors import DataError, IntegrityError
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.ids import digest_sum
from pipeline.metrics.potential import MomentsByTerm, Ranker, finite_rows
from pipeline.selection.selection import Selection, no_duplicates
from pipeline.selection.source import Positions, ScoreSource, blocks
from pipeline.selection.survey import Survey, survey
from pipeline.selection.threshold import find_cut
from pipeline.selection.ties import mth_smallest_id

DUPLICATE = "duplicate"


def select(
    source: ScoreSource, objective: Objective, metric: Metric, rule: Select, duplicates: Positions | None = None
) -> Selection:
    """Find which rows of `source` rank among the best.

    Rows with a term that is NaN, infinite or null are left out of moments and ranking and counted, as are the rows at
    the ascending positions `duplicates` of the source.

    Raises:
        SchemaError: a column the metric reads is missing, of another type, or null in every row.
        DataError: no row can be ranked, a z-scored term has no spread, or k is not between 1 and the ranked rows.
        IntegrityError: ids repeat, or the source does not give the same rows each time.
    """
    ranker = Ranker(objective=objective, metric=metric, seed=rule.seed)
    skipped = no_duplicates() if duplicates is None else np.asarray(duplicates, dtype=np.int64)
    found = survey(blocks(source, ranker.columns, skipped), ranker)
    stream = _Stream(source=source, ranker=ranker, moments=found.moments, duplicates=skipped)
    k = num_selected(rule, found.num_ranked)
    cut = find_cut(stream.scores, k, ranker.score_terms(found.sample, found.moments), found.num_ranked)
    num_tied_kept = k - cut.num_above
    boundary_id = None
    if num_tied_kept < cut.num_tied:
        boundary_id = mth_smallest_id(lambda: stream.ids_at(cut.threshold), num_tied_kept, cut.num_tied)
    selection = Selection(
        objective=objective,
        metric=metric,
        select=rule,
        threshold=cut.threshold,
        boundary_id=boundary_id,
        k=k,
        num_tied=cut.num_tied,
        num_tied_kept=num_tied_kept,
        num_rows=found.num_rows + skipped.size,
        num_ranked=found.num_ranked,
        excluded=_excluded(found, skipped),
        moments=found.moments,
        duplicates=skipped,
    )
    return dataclasses.replace(selection, id_digest=_checked_digest(selection, stream))


def num_selected(rule: Select, num_ranked: int) -> int:
    """How many of the ranked rows the rule keeps: k, or the floor of fraction * rows.

    The fraction is taken as the decimal it was written as: 0.29 of 100 rows is 29, where the product of floats,
    28.999999999999996, would be cut to 28.

    Raises:
        DataError: that is none, or more than there are.
    """
    if rule.k is not None:
        if rule.k > num_ranked:
            raise DataError(
                f"select.k is {rule.k}, but only {num_ranked} rows can be ranked. Lower it, or give a fraction."
            )
        return rule.k
    k = math.floor(Fraction(str(rule.fraction)) * num_ranked)
    if k == 0:
        raise DataError(
            f"select.fraction {rule.fraction} of {num_ranked} ranked rows is no row at all. Raise it, or give k."
        )
    return k


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    """The ranked rows of a source under a ranker, as often as asked."""

    source: ScoreSource
    ranker: Ranker
    moments: MomentsByTerm
    duplicates: Positions

    def scores(self) -> Iterator[FloatArray]:
        for _, scores in self._scored(self.ranker.columns):
            yield scores

    def ids_at(self, score: float) -> Iterator[pa.Array]:
        """Ids of the rows of exactly this score."""
        for ids, scores in self.ids_and_scores():
            tied = scores == score
            if tied.any():
                yield ids.filter(pa.array(tied))

    def ids_and_scores(self) -> Iterator[tuple[pa.Array, FloatArray]]:
        for block, scores in self._scored((schema.ID, *self.ranker.columns)):
            yield block.column(schema.ID), scores

    def _scored(self, columns: tuple[str, ...]) -> Iterator[tuple[pa.RecordBatch, FloatArray]]:
        for block in blocks(self.source, columns, self.duplicates):
            terms = self.ranker.compute(block)
            keep = finite_rows(terms)
            if keep is None:
                yield block, self.ranker.score_terms(terms, self.moments)
            else:
                finite = {name: values[keep] for name, values in terms.items()}
                yield block.filter(pa.array(keep)), self.ranker.score_terms(finite, self.moments)


def _excluded(found: Survey, duplicates: Positions) -> dict[str, int]:
    return {**found.excluded, DUPLICATE: int(duplicates.size)}


def _checked_digest(selection: Selection, stream: _Stream) -> str:
    """Digest of the kept ids, after counting that the rule keeps k rows."""
    num_kept = digest = 0
    for ids, scores in stream.ids_and_scores():
        keep = selection.mask_of(scores, ids)
        num_kept += int(np.count_nonzero(keep))
        digest += digest_sum(ids.filter(pa.array(keep)))
    if num_kept != selection.k:
        raise IntegrityError(
            f"the rule keeps {num_kept} rows instead of {selection.k}: the id at the threshold "
            f"({selection.boundary_id!r}) repeats, or the source changed meanwhile. Remove duplicates and try again."
        )
    return f"{digest % 2**64:016x}"
