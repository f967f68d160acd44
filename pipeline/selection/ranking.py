"""The score of every row under one query, and why rows have none."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import Combine, Metric, Objective, Select
from pipeline.config.lazy import why_not_lazy
from pipeline.errors import ConfigError, DataError, SchemaError
from pipeline.metrics.bound import why_no_bound
from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.metrics.normalise import Fitted
from pipeline.metrics.potential import EXPLICIT, EXPLICIT_SIGNED, MEAN, UNIFORM, VARIANCE, Term
from pipeline.metrics.ranker import LENGTH, LENGTH_GAP, LENGTH_RATIO, Quantities, Quantity, Ranker
from pipeline.selection.bands import band_quantities, fit_bands
from pipeline.selection.columns import Columns, Wanted
from pipeline.selection.disagreement import find_disagreement
from pipeline.selection.fit import fit, fit_length
from pipeline.selection.source import Positions, Source, check_columns

DUPLICATE: Final = "duplicate"
CONTRADICTED: Final = "contradicted_by_reward"
OUTSIDE_WHERE: Final = "outside_where"
DISAGREEMENT: Final = "judges_disagree"
NO_LENGTH: Final = "length_not_known"
FEW_AGREE: Final = "too_few_rewards_agree"

_NO_CANDIDATES: Final = "The source carries no rewards of all candidates: set metric.explicit to signed or absolute."
_NO_REWARD: Final = "That model was not run: add a `reward` section and score again, or choose metric.name: implicit."
_NO_LENGTH: Final = (
    "Token counts come with log-probs: add a `policy` section and score again, or leave out what reads lengths."
)
_NO_LOGP: Final = "That model was not run: add its section and score again, or choose an objective without it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One selection to find."""

    objective: Objective
    metric: Metric
    rule: Select

    @property
    def ranker(self) -> Ranker:
        """The metric as it ranks."""
        return Ranker(objective=self.objective, metric=self.metric, seed=self.rule.seed)

    @property
    def explicit(self) -> Quantity:
        """What the report shows as the explicit margin."""
        return self.ranker.quantity(EXPLICIT)

    @property
    def signed(self) -> Quantity:
        """The signed margin of the reward, or of several combined."""
        return self.ranker.signed

    @property
    def implicit(self) -> Quantity:
        """What the report shows as the implicit margin."""
        return Quantity(kind="implicit", objective=self.objective)

    @property
    def lengths(self) -> dict[Quantity, float]:
        """The rules on lengths that are set: what they look at, and the highest value."""
        bounds = {LENGTH_RATIO: self.rule.max_length_ratio, LENGTH_GAP: self.rule.max_length_gap}
        return {quantity: bound for quantity, bound in bounds.items() if bound is not None}

    @property
    def beside(self) -> dict[str, tuple[Quantity, ...]]:
        """What further rules look at, by key; a row need not have it to be ranked."""
        found = {f"band {term}": quantity.parts for term, quantity in band_quantities(self).items()}
        return found | ({"order": (LENGTH,)} if self.rule.order.startswith("length") else {})

    def on(self, scored: pa.Schema) -> "Query":
        """The same with the rewards named that it combines: all that the scored rows hold, if it says nothing else.

        Raises:
            ConfigError: it combines a reward that they do not hold, or counts the rewards of one.
        """
        combine, stored = self.metric.combine, schema.named_rewards(scored.names)
        if combine is None and stored and schema.REWARD_CHOSEN not in scored.names:
            combine = Combine()
        combine = None if combine is None else combine.over(stored)
        if combine is None and self.metric.name == "divergence":
            raise ConfigError("metric divergence is that of several rewards: score with `rewards`.")
        wanted = 0 if self.rule.agreement is None else self.rule.agreement.at_least
        num_members = 0 if combine is None else len(combine.members)
        if wanted > num_members:
            raise ConfigError(
                f"select.agreement wants {wanted} rewards to agree, and there are {num_members} to combine. Lower "
                "at_least, or score with `rewards`."
            )
        return replace(self, metric=self.metric.model_copy(update={"combine": combine}))


def wanted_by(queries: Sequence[Query], source: Source) -> Wanted:
    """The columns that queries which treat labels alike read together, those of the report included.

    Raises:
        SchemaError: the source lacks one that a metric reads.
    """
    quantities: dict[Quantity, None] = {}
    for query in queries:
        ranker = query.ranker
        needed = [part for term in (*ranker.terms, *ranker.sampled_terms) for part in ranker.quantity(term).parts]
        needed += [*query.lengths, *(part for parts in query.beside.values() for part in parts)]
        check_columns(source.schema, [name for quantity in needed for name in quantity.columns])
        made = [*needed, query.explicit, query.implicit, query.signed]
        quantities |= dict.fromkeys(quantity for each in made for quantity in each.parts)
    return Wanted(
        quantities=tuple(quantities),
        labels=queries[0].rule.labels,
        by_reward=queries[0].metric.combine is None,
        prompts=any(query.rule.per_prompt is not None or query.rule.split is not None for query in queries),
        votes=any(query.rule.disagreement is not None for query in queries),
        wheres=tuple(dict.fromkeys(query.rule.where for query in queries if query.rule.where is not None)),
        groups=tuple(dict.fromkeys(query.rule.group_by for query in queries if query.rule.group_by is not None)),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """Rows by score.

    scores: float64 [num_rows], NaN where a row is not ranked. fitted: what the metric took from the set. quantities:
    those of the columns, and the residual margin where the metric takes it. bounds: float64 [num_rows], the highest
    score that a row which was not scored can have, -inf for one that the proxy passed over, NaN for other rows; empty
    if every row was to be scored. excluded: rows that are not ranked, by reason. num_contradicted, num_disagreed: see
    Selection.
    """

    query: Query
    scores: FloatArray
    fitted: Fitted
    quantities: Quantities
    excluded: dict[str, int]
    num_contradicted: int
    num_disagreed: int | None
    bounds: FloatArray = field(default_factory=lambda: np.zeros(0))

    @property
    def num_ranked(self) -> int:
        """Rows that have a score, or a bound of it."""
        return self.scores.size - sum(self.excluded.values())

    @property
    def highest(self) -> FloatArray:
        """The score of each row, or its bound."""
        return self.scores if not self.bounds.size else np.where(np.isnan(self.bounds), self.scores, self.bounds)


def rank(columns: Columns, query: Query, duplicates: Positions, fitted: Fitted | None = None) -> Ranking:
    """Score the rows that can be ranked. duplicates: rows to leave out; fitted: from another set, else fitted here.

    Raises:
        SchemaError: a column that is read is null in every row, because that model was not run.
        DataError: no row can be ranked, a term to be normalised has no spread, or a score overflows.
    """
    rows = np.ones(columns.num_rows, dtype=np.bool_)
    rows[duplicates] = False
    outside = np.zeros_like(rows) if query.rule.where is None else columns.outside[query.rule.where]
    num_outside = int(np.count_nonzero(rows & outside))
    rows &= ~outside
    num_disagreed, num_overruled = None, 0
    if query.rule.disagreement is not None:
        disagreed, outvoted = np.zeros((2, rows.size), dtype=np.bool_)
        disagreed[~outside], outvoted[~outside] = find_disagreement(columns.votes[~outside])
        num_disagreed = int(np.count_nonzero(disagreed))
        overruled = rows & {"keep": disagreed & False, "majority": outvoted, "drop": disagreed}[query.rule.disagreement]
        num_overruled = int(np.count_nonzero(overruled))
        rows &= ~overruled
    num_contradicted = int(np.count_nonzero(columns.against & rows))
    if query.rule.labels == "drop":
        rows &= ~columns.against
    num_before = int(np.count_nonzero(rows))
    if query.rule.agreement is not None:
        rows &= columns.num_agreeing >= query.rule.agreement.at_least
    num_unique = int(np.count_nonzero(rows))
    excluded: dict[str, int] = {}
    skipped, sampled = _lazily(columns, query)
    for part, reason in _read_by(query).items():
        finite = np.isfinite(columns.quantities[part])
        if part == query.implicit:
            finite |= skipped
        excluded[reason] = excluded.get(reason, 0) + int(np.count_nonzero(rows & ~finite))
        rows &= finite
    excluded[DUPLICATE] = int(duplicates.size)
    if query.rule.where is not None:
        excluded[OUTSIDE_WHERE] = num_outside
    if num_disagreed is not None:
        excluded[DISAGREEMENT] = num_overruled
    if query.rule.labels == "drop":
        excluded[CONTRADICTED] = num_contradicted
    if query.rule.agreement is not None:
        excluded[FEW_AGREE] = num_before - num_unique
    skipped = skipped & rows
    rows &= ~skipped
    _check_rankable(columns, query, num_unique, rows, excluded)
    fitted, quantities, scores, bounds = _scores(columns, query, rows, skipped, sampled, fitted)
    fitted = fitted if fitted.bands else replace(fitted, bands=fit_bands(query, quantities, scores))
    return Ranking(
        query=query,
        scores=scores,
        fitted=fitted,
        quantities=quantities,
        excluded=excluded,
        num_contradicted=num_contradicted,
        num_disagreed=num_disagreed,
        bounds=bounds,
    )


def _scores(
    columns: Columns, query: Query, rows: BoolArray, skipped: BoolArray, sampled: BoolArray, fitted: Fitted | None
) -> tuple[Fitted, Quantities, FloatArray, FloatArray]:
    """What the metric takes from the rows, all quantities, the scores of `rows` and bounds of `skipped`.

    Statistics of the explicit margin come from all of them, since rewards are known; others from those in the sample.
    """
    ranker, fitting, rewarded = query.ranker, rows & sampled, rows | skipped
    if fitted is None and not fitting.any():
        raise DataError(
            "score.lazy takes statistics from some rows, and the rules of select leave none of them. Score to another "
            "path with more score.statistics_rows, or with score.lazy: false."
        )
    length = fitted.length if fitted is not None else fit_length(ranker, columns.quantities, rewarded)
    quantities = ranker.without_length(columns.quantities, length)
    if fitted is None:
        fitted = fit(ranker, quantities, fitting, columns.hashes, rewarded)
        fitted = replace(fitted, length=length, members=columns.members)
    read = {q: quantities[q] for q in map(ranker.quantity, ranker.terms)}
    scores, bounds = ranker.score(read, fitted), np.zeros(0)
    scores[~rows] = np.nan
    _check_finite(scores, rows)
    if columns.scoring.size and query.implicit in read:
        bounds = ranker.score({**read, query.implicit: np.zeros(rows.size)}, fitted)
        bounds[~skipped] = np.nan
        _check_finite(bounds, skipped)
        bounds[skipped & (columns.scoring == schema.SCORINGS.index(schema.PASSED_OVER))] = -np.inf
    return fitted, quantities, scores, bounds


def _lazily(columns: Columns, query: Query) -> tuple[BoolArray, BoolArray]:
    """Rows that were not scored because others would be selected, and rows that statistics come from.

    Raises:
        ConfigError: there are such rows, and metric or rules need the scores of all.
    """
    none = np.zeros(columns.num_rows, dtype=np.bool_)
    if not columns.scoring.size or not (query.metric.reads_implicit or query.rule.band):
        return none, ~none
    skipped, _, sampled, passed_over = (columns.scoring == place for place in range(len(schema.SCORINGS)))
    skipped |= passed_over
    reason = why_not_lazy(query.metric, query.rule)
    if reason is not None and skipped.any():
        raise ConfigError(
            f"{np.count_nonzero(skipped)} rows of the scored dataset were skipped by score.lazy, and {reason}; or "
            "score all rows to another path, with score.lazy: false."
        )
    return skipped, sampled if why_no_bound(query.metric) is None else ~none


def _read_by(query: Query) -> dict[Quantity, str]:
    """What a row must have to be ranked, and the reason why it is not."""
    ranker = query.ranker
    reasons = {
        part: f"{schema.MARGIN_EXPLICIT if term == EXPLICIT_SIGNED else term}_not_finite"
        for term in ranker.terms
        for part in ranker.ingredients(term)
    }
    lengths = dict.fromkeys(query.lengths, NO_LENGTH)
    return reasons | ({LENGTH_GAP: NO_LENGTH} if LENGTH_GAP in reasons else {}) | lengths


def _check_finite(scores: FloatArray, rows: BoolArray) -> None:
    num_bad = int(np.count_nonzero(rows)) - int(np.count_nonzero(np.isfinite(scores)))
    if num_bad:
        raise DataError(
            f"{num_bad} scores are infinite or NaN although their margins are finite: the metric overflows. "
            "Lower metric.weight, or look for margins near the largest double."
        )


def _check_rankable(columns: Columns, query: Query, num_rows: int, rows: BoolArray, excluded: dict[str, Any]) -> None:
    if num_rows == 0:
        raise DataError(
            "the scored dataset has no scored rows that select.where, select.disagreement, select.labels and "
            "select.agreement leave, so there is nothing to select. Check the drop reasons."
        )
    ranker, labels = query.ranker, query.rule.labels
    for term in (*ranker.terms, *ranker.sampled_terms):
        for part in ranker.ingredients(term):
            empty = columns.without_values(part)
            if empty and part != LENGTH_GAP:
                raise SchemaError(_all_null(ranker, term, empty, num_rows))
    empty = [name for name in LENGTH_GAP.columns if columns.num_values.get(name) == 0]
    if empty and _read_by(query).keys() & {LENGTH_GAP, LENGTH_RATIO}:
        reader = "a select.max_length rule" if query.lengths else f"metric.length {query.metric.length}"
        raise SchemaError(f"{reader} reads {', '.join(empty)}, null in all {num_rows} scored rows. {_NO_LENGTH}")
    empty = columns.without_values(query.signed) if labels != "keep" else []
    if empty:
        raise SchemaError(
            f"select.labels {labels} reads {', '.join(empty)}, null in all {num_rows} scored rows. {_NO_REWARD}"
        )
    _check_beside(columns, query, num_rows)
    if not rows.any():
        counts = {reason: count for reason, count in excluded.items() if count}
        raise DataError(f"none of {num_rows} scored rows can be ranked: {counts}.")


def _check_beside(columns: Columns, query: Query, num_rows: int) -> None:
    for key, parts in query.beside.items():
        empty = [name for part in parts for name in columns.without_values(part)]
        if empty:
            remedy = _NO_LENGTH if parts[0] in (LENGTH, LENGTH_GAP) else "That model was not run: leave the rule out."
            raise SchemaError(f"select.{key} reads {', '.join(empty)}, null in all {num_rows} scored rows. {remedy}")


def _all_null(ranker: Ranker, term: Term, empty: Sequence[str], num_rows: int) -> str:
    if term in (EXPLICIT, EXPLICIT_SIGNED):
        kind = ranker.metric.explicit if term == EXPLICIT else "signed"
        reader = f"metric {ranker.metric.name} with the {kind} explicit margin"
        remedy = _NO_CANDIDATES if kind == "candidates" else _NO_REWARD
    elif term in (MEAN, VARIANCE):
        reader, remedy = f"metric {ranker.metric.name}", "The source carries no rewards of all candidates."
    elif term == UNIFORM:
        reader, remedy = "metric random", "Every scored row has an id; read the output of `alignpot score`."
    else:
        reader, remedy = f"objective {ranker.objective.name}", _NO_LOGP
    return f"{reader} reads {', '.join(empty)}, null in all {num_rows} scored rows. {remedy}"
