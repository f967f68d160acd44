"""Numbers of a part, block by block: a term, its distance from a center, or the scores of rows that may be kept."""

import itertools
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError
from pipeline.metrics.columns import BoolArray, FloatArray, single_array
from pipeline.metrics.fitted import Fitted
from pipeline.metrics.ranker import Ranker
from pipeline.metrics.terms import Term, TermCache, finite_rows
from pipeline.selection.source import Block, Positions, no_positions
from pipeline.shown import shown


class Stream(Protocol):
    """Finite numbers of some rows of a block, one array for each group."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads."""
        ...

    @property
    def num_groups(self) -> int:
        """How many arrays it gives for a block."""
        ...

    def values(self, block: Block, cache: TermCache) -> list[FloatArray]:
        """The numbers of a block, by group."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TermStream:
    """One term of the rows that can be ranked, or its distance from `center`."""

    ranker: Ranker
    term: Term
    center: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads."""
        return self.ranker.columns

    @property
    def num_groups(self) -> int:
        """One."""
        return 1

    def values(self, block: Block, cache: TermCache) -> list[FloatArray]:
        """The numbers of a block."""
        del block
        terms = self.ranker.compute(cache)
        keep = finite_rows(terms)
        values = terms[self.term] if keep is None else terms[self.term][keep]
        return [values if self.center is None else np.abs(values - self.center)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """The rows that may be kept, and their scores.

    min_score, max_score: bounds, both included. left_out: ascending positions of rows that a rule has excluded.
    group_by, groups: the column that names groups, and those that have a share; without one there is one group.
    """

    ranker: Ranker
    fitted: Fitted
    min_score: float | None = None
    max_score: float | None = None
    left_out: Positions = field(default_factory=no_positions)
    group_by: str | None = None
    groups: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads."""
        return (*self.ranker.columns, *([self.group_by] if self.group_by is not None else []))

    @property
    def num_groups(self) -> int:
        """Groups that have a share."""
        return len(self.groups) if self.group_by is not None else 1

    def values(self, block: Block, cache: TermCache) -> list[FloatArray]:
        """Scores of the candidates of a block, by group."""
        scores, mask = self.scores(block, cache)
        if self.group_by is None:
            return [scores if mask is None else scores[mask]]
        return [scores[rows] for rows in self.rows_by_group(block, mask)]

    def scores(self, block: Block, cache: TermCache) -> tuple[FloatArray, BoolArray | None]:
        """Scores of all rows of a block, and which of them are candidates (None: all); groups are not looked at.

        Raises:
            DataError: a score overflows.
        """
        scores, mask = self.ranker.scored(cache, self.fitted)
        check_finite(scores if mask is None else scores[mask])
        for bound in (
            block.without(self.left_out),
            None if self.min_score is None else scores >= self.min_score,
            None if self.max_score is None else scores <= self.max_score,
        ):
            if bound is not None:
                mask = bound if mask is None else mask & bound
        return scores, mask

    def rows_by_group(self, block: Block, mask: BoolArray | None) -> list[Positions]:
        """Indices into the block of the masked rows, for each group."""
        if self.group_by is None:
            return [np.flatnonzero(mask) if mask is not None else np.arange(block.rows.num_rows)]
        codes = group_codes(block.rows, self.group_by, self.groups)
        if mask is not None:
            codes = np.where(mask, codes, -1)
        order = np.argsort(codes, kind="stable")
        cuts = np.searchsorted(codes[order], np.arange(len(self.groups) + 1))
        return [order[start:stop] for start, stop in itertools.pairwise(cuts)]


def check_finite(scores: FloatArray) -> None:
    """Refuse scores that are infinite or NaN although their terms are finite.

    Raises:
        DataError: with their number.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(scores.sum()) or np.isfinite(scores).all():
            return
    num_bad = int(np.count_nonzero(~np.isfinite(scores)))
    raise DataError(
        f"{num_bad} scores are infinite or NaN although their margins are finite: the metric overflows. "
        "Lower metric.weight, or look for margins near the largest double."
    )


def group_names(rows: pa.RecordBatch, column: str) -> pa.Array:
    """The groups of rows as strings; null where a row has none.

    Raises:
        DataError: the column holds neither text nor whole numbers nor truth values.
    """
    values = single_array(rows, column)
    check_group_type(column, values.type)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(pa.string())


def check_group_type(column: str, kind: pa.DataType) -> None:
    """Refuse a column that cannot name groups.

    Raises:
        DataError: it holds neither text nor whole numbers nor truth values.
    """
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    named = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    if not any(test(kind) for test in named):
        raise DataError(
            f"select.group_by {shown(column)} has type {kind}; wanted text, whole numbers or true and false."
        )


def group_codes(rows: pa.RecordBatch, column: str, groups: tuple[str, ...]) -> Positions:
    """Index of each row's group in `groups`; -1 where it is not among them."""
    found = pc.index_in(group_names(rows, column), value_set=pa.array(groups, pa.string()))
    codes: Positions = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes
