"""Find selections: one pass over narrow columns, then arithmetic in memory.

    columns -> repeats -> what the metric takes from the set -> scores -> rules -> chosen rows

A sweep reads the columns once for each way to treat labels. The result depends on the set of rows alone: on neither
their order, nor the parts they come in.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import Labels, Metric, Objective, Select
from pipeline.errors import SchemaError
from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.metrics.combine import combined, fit_members, num_agreeing
from pipeline.metrics.normalise import Fitted
from pipeline.metrics.ranker import LENGTH
from pipeline.metrics.weighting import Weighting
from pipeline.selection.columns import Columns, read_columns
from pipeline.selection.duplicates import find_repeats
from pipeline.selection.labels import swap_sides
from pipeline.selection.order import written_order
from pipeline.selection.passes import Passes, Threads
from pipeline.selection.ranking import Query, Ranking, rank, wanted_by
from pipeline.selection.rules import Choice, choose
from pipeline.selection.source import Positions, Source
from pipeline.selection.split import split_rows
from pipeline.selection.threshold import Cut


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """The rows of a scored dataset that one query keeps, and how it came to them.

    positions: of the kept rows, ascending, int64 [k]. scores, explicit, implicit: theirs, float64 [k]; a margin that
    the source has no columns for is NaN. swapped: kept rows whose sides are to be exchanged.
    cuts: by group, in order of name; one under None where select.group_by is not set.
    num_rows: rows read, repeats included. num_ranked: those with a score. num_contradicted: pairs whose label the
    reward contradicts, where select.labels is not keep. num_disagreed: rows, repeats included, whose two answers
    another row prefers the other way round; None unless select.disagreement is set. num_skipped: rows that score.lazy
    left out of scoring; None if it was not set. num_passed_over: rows that score.proxy left out; if there are some, the
    selection is approximate.
    excluded: rows that could not be kept, by reason. order: see `written_order`. splits: see `split_rows`, places among
    the kept rows, in that order.
    fitted: what the metric took from the whole set. id_digest: names the set of kept ids, whatever their order.
    """

    query: Query
    fitted: Fitted
    positions: Positions
    scores: FloatArray
    explicit: FloatArray
    implicit: FloatArray
    swapped: BoolArray
    cuts: Mapping[str | None, Cut]
    num_rows: int
    num_ranked: int
    num_contradicted: int
    num_disagreed: int | None
    num_skipped: int | None
    excluded: Mapping[str, int]
    id_digest: str
    splits: Mapping[str, Positions]
    order: Positions | None = None
    num_passed_over: int = 0

    @property
    def weights(self) -> FloatArray | None:
        """How much each kept row counts in training, float64 [k], where select.weights is set."""
        return None if self.fitted.weighting is None else self.fitted.weighting.of_rows(self.scores)

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The columns that the kept rows have beside those of the source."""
        weight = () if self.fitted.weighting is None else (pa.field(schema.WEIGHT, pa.float64()),)
        return (*schema.SUBSET_FIELDS, *weight)

    @property
    def k(self) -> int:
        """Rows kept."""
        return int(self.positions.size)

    @property
    def num_by_split(self) -> dict[str, int]:
        """Rows kept, by split; all are of `train` unless select.split is set."""
        return {name: int(rows.size) for name, rows in self.splits.items()} or {schema.TRAIN: self.k}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the rows, JSON-ready, for the manifest."""
        groups = {name: cut.to_dict() for name, cut in self.cuts.items() if name is not None}
        return {
            "objective": self.query.objective.model_dump(mode="json"),
            "metric": self.query.metric.model_dump(mode="json"),
            "select": self.query.rule.model_dump(mode="json", exclude={"engine"} | self.query.rule.unset),
            "fitted": self.fitted.to_dict(),
            **(self.cuts[None].to_dict() if None in self.cuts else {"k": self.k}),
            "groups": groups or None,
            "num_rows": self.num_rows,
            "num_ranked": self.num_ranked,
            "excluded": dict(self.excluded),
            "num_contradicted": self.num_contradicted,
            **({} if self.num_disagreed is None else {"num_disagreed": self.num_disagreed}),
            **({} if self.num_skipped is None else {"num_skipped": self.num_skipped}),
            **({"approximate": True, "num_passed_over": self.num_passed_over} if self.num_passed_over else {}),
            **({"splits": self.num_by_split} if self.splits else {}),
            "id_digest": self.id_digest,
        }

    def rows(
        self, source: Source, columns: Sequence[str], places: slice | Positions = slice(None)
    ) -> Iterator[pa.Table]:
        """The kept rows in the order of writing: `columns`, then margin_explicit, margin_implicit, potential, weight.

        places: a range of that order, or which of the kept rows, in their order. Sides are exchanged where
        select.labels swaps them. Rows out of the order of the source are taken at once: all of them are in memory.
        """
        if self.order is None:
            yield from self._as_read(source, columns, places)
            return
        wanted = self.order[places] if isinstance(places, slice) else places
        ascending = np.sort(wanted)
        tables = list(self._as_read(source, columns, ascending))
        if tables:
            yield pa.concat_tables(tables).take(pa.array(np.searchsorted(ascending, wanted)))

    def _as_read(self, source: Source, columns: Sequence[str], places: slice | Positions) -> Iterator[pa.Table]:
        taken = [field.name for field in self.fields if field.name in source.schema.names]
        if taken:
            raise SchemaError(
                f"{taken} are in the table already. If it is a subset, select from the scored dataset; if not, give "
                "these columns other names in the source."
            )
        swapped = self.swapped[places]
        weights = self.weights
        numbers = [values[places] for values in (self.explicit, self.implicit, self.scores)]
        numbers += [] if weights is None else [weights[places]]
        start = 0
        for table in source.take(self.positions[places], columns):
            rows = slice(start, start + table.num_rows)
            kept = swap_sides(table, swapped[rows])
            for field, values in zip(self.fields, numbers, strict=True):
                kept = kept.append_column(field, pa.array(values[rows], mask=np.isnan(values[rows])))
            yield kept
            start = rows.stop


def select(source: Source, objective: Objective, metric: Metric, rule: Select) -> Selection:
    """Find which rows of `source` rank among the best.

    Rows with a term that is NaN, infinite or null are left out of statistics and ranking and counted, as are rows that
    repeat the id and content of another one.

    Raises:
        SchemaError: a column the metric reads is missing, of another type, or null in every row.
        SourceError: rows share an id but not their content.
        DataError: no row can be ranked, a term to be normalised has no spread, or more rows are wanted than are left.
    """
    [found] = select_many(source, [Query(objective=objective, metric=metric, rule=rule)])
    return found.selection


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """A selection, and what reports and comparisons look at: the columns and the scores of all rows."""

    selection: Selection
    columns: Columns
    ranking: Ranking


def select_many(source: Source, queries: Sequence[Query], passes: Passes | None = None) -> Iterator[Found]:
    """Find several selections of one source, one after another; each equals that of `select`.

    Neighbours that treat labels alike share one reading. Raises as `select`.
    """
    queries = [query.on(source.schema) for query in queries]
    read = Reader(source, queries, passes)
    for query in queries:
        columns, duplicates = read.for_query(query)
        ranking = rank(columns, query, duplicates)
        yield found(columns, ranking, choose(source, columns, ranking))


class Reader:
    """Reads the columns that some queries want; holds those of the treatment of labels that was asked for last.

    duplicates: rows to leave out of what is taken from the set; left out, those that repeat others are looked for.
    """

    def __init__(
        self,
        source: Source,
        queries: Sequence[Query],
        passes: Passes | None = None,
        duplicates: Positions | None = None,
    ) -> None:
        self._source, self._queries = source, queries
        self._passes: Passes = passes if passes is not None else Threads()
        self._duplicates = duplicates
        self._read: tuple[str, Columns] | None = None

    def for_query(self, query: Query, fitted: Fitted | None = None) -> tuple[Columns, Positions]:
        """The columns, and the positions of rows that repeat others. Raises as `select`.

        fitted: what a former selection took from its set.
        """
        labels, combine = query.rule.labels, query.metric.combine
        columns = self._columns(_read_with(query))
        if self._duplicates is None:
            self._duplicates = find_repeats(self._source, columns.hashes)
        if combine is None:
            return columns, self._duplicates
        rows = np.ones(columns.num_rows, dtype=np.bool_)
        rows[self._duplicates] = False
        if query.rule.where is not None:
            rows &= ~columns.outside[query.rule.where]
        margins = _margins(columns, query)
        members = fit_members(margins, rows, combine) if fitted is None else fitted.members
        if labels != "keep":
            # Labels are judged by the combined margin, for which the whole set had to be read first.
            against = combined({name: -margin for name, margin in margins.items()}, members, combine) > 0
            columns = read_columns(self._source, wanted_by([query], self._source), self._passes, against)
            margins = _margins(columns, query)
        made = {query.signed: combined(margins, members, combine)}
        return replace(
            columns,
            quantities=columns.quantities | made,
            num_agreeing=num_agreeing(margins, combine),
            members=members,
        ), self._duplicates

    def _columns(self, labels: Labels) -> Columns:
        if self._read is None or self._read[0] != labels:
            wanted = wanted_by([query for query in self._queries if _read_with(query) == labels], self._source)
            self._read = labels, read_columns(self._source, replace(wanted, labels=labels), self._passes)
        return self._read[1]


def _read_with(query: Query) -> Labels:
    """How labels are treated where a query's columns are first read: several rewards cannot judge them before."""
    return query.rule.labels if query.metric.combine is None else "keep"


def _margins(columns: Columns, query: Query) -> dict[str, FloatArray]:
    """The margin of each reward that a query combines, by name."""
    return {quantity.rewards[0]: columns.quantities[quantity] for quantity in query.signed.parts}


def found(columns: Columns, ranking: Ranking, choice: Choice) -> Found:
    """The selection that a choice makes. Raises a DataError if a split would have no row."""
    query, rows = ranking.query, choice.positions
    columns = replace(columns, quantities=dict(ranking.quantities))
    missing = np.full(rows.size, np.nan)
    explicit, implicit = (
        columns.quantities[quantity][rows] if quantity in columns.quantities else missing
        for quantity in (query.explicit, query.implicit)
    )
    scores, fitted = ranking.scores[rows], ranking.fitted
    if query.rule.weights and fitted.weighting is None:
        fitted = replace(fitted, weighting=Weighting.of(scores))
    lengths = columns.quantities[LENGTH][rows] if query.rule.order.startswith("length") else None
    order = written_order(query.rule.order, scores, lengths, columns.hashes[rows])
    splits = split_rows(columns.prompts[rows], query.rule)
    if order is not None:
        splits = {name: order[np.isin(order, of_split)] for name, of_split in splits.items()}
    swapped = columns.against[rows] if query.rule.labels == "swap" else np.zeros(rows.size, dtype=np.bool_)
    selection = Selection(
        query=query,
        fitted=fitted,
        positions=rows,
        scores=scores,
        explicit=np.abs(explicit) if query.metric.explicit == "absolute" else explicit,
        implicit=implicit,
        swapped=swapped,
        cuts=choice.cuts,
        num_rows=columns.num_rows,
        num_ranked=ranking.num_ranked,
        num_contradicted=ranking.num_contradicted,
        num_disagreed=ranking.num_disagreed,
        num_skipped=int(np.count_nonzero(columns.scoring == 0)) if columns.scoring.size else None,
        excluded=ranking.excluded | choice.excluded,
        id_digest=f"{int(columns.hashes[rows].sum(dtype=np.uint64)):016x}",
        splits=splits,
        order=order,
        num_passed_over=int(np.count_nonzero(columns.scoring == schema.SCORINGS.index(schema.PASSED_OVER))),
    )
    return Found(selection=selection, columns=columns, ranking=ranking)
