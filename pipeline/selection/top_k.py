"""Exact global top-k over a streamed source, ties by id, in constant memory, for one selection or many at once.

    survey -> what metrics take from the whole set -> candidates -> how many of each group -> thresholds -> ties

Each step is a pass over narrow columns that all selections share; a sweep of weights or fractions costs little more
than one selection. The result depends on the set of rows alone: on neither their order, nor the parts they come in, nor
any guess.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

import numpy as np

from pipeline.config import Metric, Objective, Select
from pipeline.errors import ConfigError, DataError
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.kernels import Band
from pipeline.metrics.ranker import Ranker
from pipeline.selection.counts import GroupCounts, count_candidates
from pipeline.selection.cuts import Quotas, find_group_cuts
from pipeline.selection.exclusion import BEYOND_PROMPT_CAP, beyond_prompt_caps, without_similar
from pipeline.selection.fit import Fit, fit
from pipeline.selection.one_pass import Pair, guess_band, sampled_terms, settle
from pipeline.selection.passes import Passes, Threads
from pipeline.selection.quotas import allocate
from pipeline.selection.selection import Selection
from pipeline.selection.source import Part, Positions, ScoreSource, no_positions, parts_of
from pipeline.selection.streams import Candidates
from pipeline.selection.survey import Survey, SurveyKey, excluded_reason, survey_key
from pipeline.selection.tally import verified
from pipeline.shown import shown

DUPLICATE: Final = "duplicate"
CONTRADICTED: Final = "contradicted_by_reward"
OUTSIDE_BAND: Final = "outside_score_band"
NO_GROUP: Final = "group_null"
NO_QUOTA: Final = "group_without_quota"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One selection to find. objective None takes both margins from columns of these names."""

    objective: Objective | None
    metric: Metric
    rule: Select

    @property
    def ranker(self) -> Ranker:
        """The metric as it ranks."""
        return Ranker(objective=self.objective, metric=self.metric, seed=self.rule.seed)


def select(
    source: ScoreSource,
    objective: Objective | None,
    metric: Metric,
    rule: Select,
    duplicates: Positions | None = None,
) -> Selection:
    """Find which rows of `source` rank among the best.

    Rows with a term that is NaN, infinite or null are left out of statistics and ranking and counted, as are the rows
    at the ascending positions `duplicates` of the source.

    Raises:
        SchemaError: a column the metric reads is missing, of another type, or null in every row.
        DataError: no row can be ranked, a term to be normalised has no spread, or more rows are wanted than are left.
        IntegrityError: ids repeat, or the source does not give the same rows each time.
    """
    return select_many(source, [Query(objective=objective, metric=metric, rule=rule)], duplicates)[0]


def select_many(
    source: ScoreSource,
    queries: Sequence[Query],
    duplicates: Positions | None = None,
    passes: Passes | None = None,
    *,
    verify: bool = True,
) -> list[Selection]:
    """Find several selections of one source, reading it as often as for one; each equals that of `select`.

    verify: count and digest what each keeps, which reads the ids; a caller that does so itself may leave it out.

    Raises:
        As `select`.
    """
    passes = passes if passes is not None else Threads()
    skipped = no_positions() if duplicates is None else duplicates
    found: dict[int, Selection] = {}
    for labels in dict.fromkeys(query.rule.labels for query in queries):
        places = [i for i, query in enumerate(queries) if query.rule.labels == labels]
        parts = parts_of(source, skipped, labels, passes.num_parts)
        wanted = [queries[i] for i in places]
        bands = _guessed_bands(source, wanted)
        selections = _decide(passes, parts, wanted, bands)
        if verify:
            selections = verified(passes, parts, selections)
        found.update(zip(places, selections, strict=True))
    return [found[i] for i in range(len(queries))]


def num_selected(rule: Select, num_rows: int) -> int:
    """How many of the rows that are left the rule keeps: k, the floor of fraction * rows, or all of them.

    The fraction is taken as the decimal it was written as: 0.29 of 100 rows is 29, where the product of floats,
    28.999999999999996, would be cut to 28.

    Raises:
        DataError: that is none, or more than there are.
    """
    if rule.k is not None:
        if rule.k > num_rows:
            raise DataError(
                f"select.k is {rule.k}, but only {num_rows} rows can be ranked. Lower it, or give a fraction."
            )
        return rule.k
    if rule.fraction is None:
        if rule.min_score is None and rule.max_score is None:
            raise ConfigError("nothing says how many rows to keep: give select.fraction, k, min_score or max_score.")
        if num_rows == 0:
            raise DataError(
                f"no row has a score between select.min_score {rule.min_score} and select.max_score {rule.max_score}. "
                "See the scores in the report of a selection without these bounds."
            )
        return num_rows
    k = math.floor(Fraction(str(rule.fraction)) * num_rows)
    if k == 0:
        raise DataError(
            f"select.fraction {rule.fraction} of {num_rows} ranked rows is no row at all. Raise it, or give k."
        )
    return k


def _guessed_bands(source: ScoreSource, queries: Sequence[Query]) -> list[Band | None]:
    """Where a first reading may find thresholds already: those of a share of all rows, by z-scored margins."""
    samples: dict[SurveyKey, list[Pair]] = {}
    bands: list[Band | None] = []
    for query in queries:
        rule, ranker = query.rule, query.ranker
        limits = (rule.group_by, rule.min_score, rule.max_score, rule.per_prompt)
        if rule.fraction is None or any(limit is not None for limit in limits) or ranker.fixed_weight is None:
            bands.append(None)
            continue
        key = survey_key(ranker)
        if key not in samples:
            samples[key] = sampled_terms(source, rule.labels, ranker)
        bands.append(guess_band(samples[key], ranker, rule.fraction))
    return bands


def _decide(
    passes: Passes, parts: Sequence[Part], queries: Sequence[Query], bands: Sequence[Band | None]
) -> list[Selection]:
    rules = [query.rule for query in queries]
    duplicates = np.concatenate([part.duplicates for part in parts])
    fits = fit(passes, parts, [query.ranker for query in queries], bands)
    unlimited = [_candidates(query, found) for query, found in zip(queries, fits, strict=True)]
    num_rows = max(found.survey.num_rows for found in fits)
    capped = beyond_prompt_caps(passes, parts, unlimited, [rule.per_prompt for rule in rules], num_rows)
    counts = _counts(passes, parts, queries, capped, fits)
    quotas = [_quotas(query, count, found) for query, count, found in zip(queries, counts, fits, strict=True)]
    candidates = [
        replace(c, groups=tuple(str(name) for name in q.kept)) if c.group_by is not None else c
        for c, q in zip(capped, quotas, strict=True)
    ]
    samples = [_sampled_scores(query.ranker, found) for query, found in zip(queries, fits, strict=True)]
    cuts = find_group_cuts(passes, parts, candidates, quotas, samples)
    selections = [
        Selection(
            objective=query.objective,
            metric=query.metric,
            select=query.rule,
            fitted=fits[i].fitted,
            cuts=cuts[i],
            groups=candidates[i].groups,
            num_rows=num_rows_read(fits[i].survey, query.rule, duplicates),
            num_ranked=fits[i].survey.num_ranked,
            excluded=excluded_rows(fits[i].survey, query, candidates[i], counts[i], duplicates),
            num_contradicted=fits[i].survey.num_contradicted,
            duplicates=duplicates,
            left_out=candidates[i].left_out,
        )
        for i, query in enumerate(queries)
    ]
    return [
        without_similar(passes, parts, selection, quota) for selection, quota in zip(selections, quotas, strict=True)
    ]


def _candidates(query: Query, found: Fit) -> Candidates:
    rule = query.rule
    return Candidates(
        ranker=query.ranker,
        fitted=found.fitted,
        min_score=rule.min_score,
        max_score=rule.max_score,
        group_by=rule.group_by,
    )


def _counts(
    passes: Passes,
    parts: Sequence[Part],
    queries: Sequence[Query],
    candidates: Sequence[Candidates],
    fits: Sequence[Fit],
) -> list[GroupCounts]:
    """Candidates by group; a pass where the survey does not tell."""
    counts: dict[int, GroupCounts] = {
        i: Counter({None: fits[i].survey.num_ranked - candidates[i].left_out.size})
        for i, query in enumerate(queries)
        if query.rule.group_by is None and query.rule.min_score is None and query.rule.max_score is None
    }
    others = [i for i in range(len(queries)) if i not in counts]
    if others:
        ungrouped = [replace(candidates[i], group_by=None) for i in others]
        counted = count_candidates(passes, parts, ungrouped, [queries[i].rule.group_by for i in others])
        counts.update(zip(others, counted, strict=True))
    return [counts[i] for i in range(len(queries))]


def _quotas(query: Query, counts: GroupCounts, found: Fit) -> Quotas:
    rule = query.rule
    if rule.group_by is None:
        k = num_selected(rule, counts[None])
        cut = None if found.between is None else settle(found.between, query.ranker, found.fitted, k)
        return Quotas(kept={None: k}, available=counts, whole=rule.fraction is None and rule.k is None, found=cut)
    sizes = {name: count for name, count in counts.items() if name is not None}
    if not sizes:
        raise DataError(
            f"select.group_by {shown(rule.group_by)} is null in every row that could be kept. Name another column."
        )
    k = num_selected(rule, sum(sizes.values()))
    return Quotas(kept={name: k for name, k in allocate(rule.quotas, sizes, k).items() if k}, available=counts)


def _sampled_scores(ranker: Ranker, found: Fit) -> FloatArray:
    rows = found.survey.sample.rows()
    if not rows:
        return np.zeros(0)
    scores = ranker.score_terms(rows, found.fitted)
    finite: FloatArray = scores[np.isfinite(scores)]
    return finite


def num_rows_read(survey: Survey, rule: Select, duplicates: Positions) -> int:
    """Scored rows that a survey stands for, with those that it did not see."""
    dropped = survey.num_contradicted if rule.labels == "drop" else 0
    return survey.num_rows + int(duplicates.size) + dropped


def excluded_rows(
    survey: Survey, query: Query, candidates: Candidates, counts: GroupCounts, duplicates: Positions
) -> dict[str, int]:
    """Rows that could not be kept, by reason; `counts` are those of the candidates, by group."""
    rule = query.rule
    excluded = {excluded_reason(term): 0 for term in query.ranker.terms} | survey.excluded
    excluded[DUPLICATE] = int(duplicates.size)
    if rule.labels == "drop":
        excluded[CONTRADICTED] = survey.num_contradicted
    if rule.per_prompt is not None:
        excluded[BEYOND_PROMPT_CAP] = int(candidates.left_out.size)
    if rule.min_score is not None or rule.max_score is not None:
        excluded[OUTSIDE_BAND] = survey.num_ranked - int(candidates.left_out.size) - sum(counts.values())
    if rule.group_by is not None:
        excluded[NO_GROUP] = counts[None]
        named = set(candidates.groups)
        excluded[NO_QUOTA] = sum(count for name, count in counts.items() if name is not None and name not in named)
    return excluded
