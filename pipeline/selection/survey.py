"""The first pass of a selection: rows by outcome, and what metrics must know of the whole set, exactly and mergeably.

A survey of the whole is the merged surveys of its parts. Everything that decides a selection (counts, moments,
histograms, extremes, drawn samples) is the same for any order and partition of the rows.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schema
from pipeline.errors import DataError, SchemaError
from pipeline.metrics.columns import FloatArray, single_array
from pipeline.metrics.kernels import NO_BAND, Band, ExactSums, Kept, band_scan, survey_scan
from pipeline.metrics.margins import EXPLICIT_COLUMNS
from pipeline.metrics.moments import Moments, moments_from, moments_of
from pipeline.metrics.normalise import RANK_BITS, rank_buckets
from pipeline.metrics.potential import BEES_RARE
from pipeline.metrics.ranker import Ranker
from pipeline.metrics.terms import EXPLICIT, EXPLICIT_SIGNED, IMPLICIT, UNIFORM, Term, TermCache, Terms, finite_rows
from pipeline.selection.one_pass import MOST_HELD, Between
from pipeline.selection.samples import DrawnSample, StridedSample
from pipeline.selection.source import Block, Part

_COMPILED_ROWS: Final = 2**18  # compiled loops read each value once, so that caches matter less than calls

_NO_CANDIDATES: Final = "The source carries no rewards of all candidates: set metric.explicit to signed or absolute."
_NO_REWARD: Final = "That model was not run: add a `reward` section and score again, or choose metric.name: implicit."
_NO_LOGP: Final = "That model was not run: add its section and score again, or choose an objective without it."

SurveyKey: TypeAlias = tuple[Any, ...]


def survey_key(ranker: Ranker) -> SurveyKey:
    """Rankers of one key need one survey: they read the same terms and the same facts about them."""
    reading = ranker.reading
    terms = tuple((term, reading.key(term)) for term in ranker.terms)
    sampled = tuple((term, reading.key(term)) for term in ranker.sampled_terms)
    return (terms, ranker.needs, sampled)


def excluded_reason(term: Term) -> str:
    """What rows are counted under that lack a term."""
    return f"{schema.MARGIN_EXPLICIT if term == EXPLICIT_SIGNED else term}_not_finite"


@dataclass(slots=True, kw_only=True)
class Survey:
    """What passing over rows says about them, under one ranker.

    num_rows: rows that are no duplicates. excluded: those that cannot be ranked, by reason.
    moments, histograms, largest: by term, over the ranked rows. sample, drawn: terms of some ranked rows.
    num_contradicted: pairs whose label the reward contradicts; counted where select.labels is not keep.
    num_values: values that are not null, by column. between: what was found of each band that was guessed.
    """

    num_rows: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    num_contradicted: int = 0
    num_values: dict[str, int] = field(default_factory=dict)
    between: list[Between] = field(default_factory=list)
    moments: dict[Term, Moments] = field(default_factory=dict)
    histograms: dict[Term, npt.NDArray[np.int64]] = field(default_factory=dict)
    largest: dict[Term, list[float]] = field(default_factory=dict)
    sample: StridedSample[Term] = field(default_factory=StridedSample)
    drawn: DrawnSample[Term] = field(default_factory=DrawnSample)
    _sums: dict[Term, ExactSums] = field(default_factory=dict)
    _kept: Kept | None = None

    @property
    def num_ranked(self) -> int:
        """Rows that have a score."""
        return self.num_rows - sum(self.excluded.values())

    def add(self, block: Block, cache: TermCache, ranker: Ranker) -> None:
        """Take in a block."""
        self.num_rows += block.rows.num_rows
        self.num_contradicted += block.num_contradicted
        for name in block.rows.schema.names:
            column = block.rows.column(name)
            self.num_values[name] = self.num_values.get(name, 0) + len(column) - column.null_count
        if ranker.fixed_weight is not None:
            self._scan(cache, ranker)
        else:
            terms = self._finite_only(ranker.compute(cache))
            self._add_facts(terms, ranker)
            self.sample.add(terms)
        if ranker.sampled_terms:
            self._draw(block, cache, ranker)

    def close(self) -> None:
        """Turn running sums into moments; to be called when all blocks are in."""
        num_ranked = self.num_ranked
        for term, sums in self._sums.items():
            self.moments[term] = moments_from(sums, num_ranked)
        self._sums = {}
        self._kept = None

    def merge(self, other: "Survey") -> None:
        """Take in the survey of other rows."""
        self.num_rows += other.num_rows
        self.num_contradicted += other.num_contradicted
        self.excluded = dict(Counter(self.excluded) + Counter(other.excluded))
        self.num_values = {n: self.num_values.get(n, 0) + other.num_values.get(n, 0) for n in
                           dict.fromkeys([*self.num_values, *other.num_values])}  # fmt: skip
        self.between = [*other.between] if not self.between else self.between
        for mine, theirs in zip(self.between, other.between, strict=True):
            if mine is not theirs:
                mine.merge(theirs)
        for term, moments in other.moments.items():
            self.moments[term] = self.moments.get(term, Moments()) + moments
        for term, histogram in other.histograms.items():
            self.histograms[term] = self.histograms[term] + histogram if term in self.histograms else histogram
        for term, values in other.largest.items():
            self.largest[term] = heapq.nlargest(BEES_RARE, [*self.largest.get(term, []), *values])
        self.sample.merge(other.sample)
        self.drawn.merge(other.drawn)

    def _scan(self, cache: TermCache, ranker: Ranker) -> None:
        """Moments of both terms, and the rows of every band, by the compiled kernels."""
        explicit, implicit = (cache.get(ranker.reading, term) for term in (EXPLICIT, IMPLICIT))
        if self._kept is None or self._kept.rows.size < explicit.size:
            self._kept = Kept.room_for(explicit.size)
        terms, absolute = ranker.terms, ranker.metric.implicit == "absolute"
        if not self._sums:
            self._sums = {term: ExactSums.empty() for term in terms}
        sums = (self._sums[terms[0]], self._sums[terms[1]])
        open_bands = [between for between in self.between if not between.overflown]
        first = open_bands[0].band if open_bands else NO_BAND
        counts = survey_scan(explicit, implicit, first, self._kept, sums, absolute=absolute)
        for term, num_bad in zip(terms, counts[2:], strict=True):
            if num_bad:
                self._exclude(term, num_bad)
        for i, between in enumerate(open_bands):
            found = band_scan(explicit, implicit, between.band, self._kept, absolute=absolute) if i else counts
            between.add(found, self._kept)
        if not self.between:
            finite: dict[Term, FloatArray] = {EXPLICIT: explicit, terms[1]: np.abs(implicit) if absolute else implicit}
            keep = finite_rows(finite)
            self.sample.add(finite if keep is None else {term: values[keep] for term, values in finite.items()})

    def _finite_only(self, terms: Terms) -> Terms:
        """The rows whose terms are all finite; the others are counted under the first term that is not."""
        keep: npt.NDArray[np.bool_] | None = None
        for name, values in terms.items():
            bad = ~np.isfinite(values)
            if bad.any():
                keep = np.ones(values.shape, dtype=np.bool_) if keep is None else keep
                self._exclude(name, int(np.count_nonzero(bad & keep)))
                keep &= ~bad
        return terms if keep is None else {name: values[keep] for name, values in terms.items()}

    def _exclude(self, term: Term, num_rows: int) -> None:
        reason = excluded_reason(term)
        self.excluded[reason] = self.excluded.get(reason, 0) + num_rows

    def _add_facts(self, terms: Terms, ranker: Ranker) -> None:
        needs = ranker.needs
        for term, values in terms.items():
            if needs & {"moments", "ratio"}:
                self.moments[term] = self.moments.get(term, Moments()) + moments_of(values)
            if "ranks" in needs:
                counts = np.bincount(rank_buckets(values), minlength=1 << RANK_BITS)
                self.histograms[term] = self.histograms[term] + counts if term in self.histograms else counts
            if "ranges" in needs:
                top = np.partition(values, -BEES_RARE)[-BEES_RARE:] if values.size > BEES_RARE else values
                self.largest[term] = heapq.nlargest(BEES_RARE, [*self.largest.get(term, []), *top.tolist()])

    def _draw(self, block: Block, cache: TermCache, ranker: Ranker) -> None:
        values = {
            term: cache.get(ranker.reading, term) for term in dict.fromkeys([*ranker.terms, *ranker.sampled_terms])
        }
        keep = np.ones(block.rows.num_rows, dtype=np.bool_)
        for array in values.values():
            keep &= np.isfinite(array)
        ids = single_array(block.rows, schema.ID)
        self.drawn.add(ids.filter(pa.array(keep)), {term: array[keep] for term, array in values.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyTask:
    """Surveys one part for several rankers, reading it once; picklable."""

    rankers: Sequence[Ranker]
    bands: Sequence[Sequence[Band]]
    """Of each ranker; for rankers with a fixed weight."""
    most_held: int = MOST_HELD

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads."""
        names = [name for ranker in self.rankers for name in ranker.columns]
        names += [name for r in self.rankers for term in r.sampled_terms for name in r.columns_of(term)]
        return tuple(dict.fromkeys([*names, *([schema.ID] if any(r.sampled_terms for r in self.rankers) else [])]))

    def __call__(self, part: Part) -> list[Survey]:
        """One survey a ranker."""
        surveys = [Survey(between=[Between(band=band, limit=self.most_held) for band in bands]) for bands in self.bands]
        compiled = all(ranker.fixed_weight is not None for ranker in self.rankers)
        for block in part.blocks(self.columns, _COMPILED_ROWS if compiled else None):
            cache = TermCache(block.rows)
            for survey, ranker in zip(surveys, self.rankers, strict=True):
                survey.add(block, cache, ranker)
        for survey in surveys:
            survey.close()
        return surveys


def check_rankable(survey: Survey, ranker: Ranker, *, labels: str) -> None:
    """Refuse a set that gives the metric nothing to rank.

    Raises:
        SchemaError: a column that is read is null in every row, because that model was not run.
        DataError: no row can be ranked.
    """
    if survey.num_rows == 0:
        raise DataError(
            "the scored dataset has no scored rows that select.labels leaves, so there is nothing to select. Check "
            "the drop reasons."
        )
    for term in (*ranker.terms, *ranker.sampled_terms):
        empty = [name for name in ranker.columns_of(term) if survey.num_values.get(name, 0) == 0]
        if empty:
            raise SchemaError(_all_null(ranker, term, empty, survey.num_rows))
    if labels != "keep":
        empty = [name for name in EXPLICIT_COLUMNS["signed"] if survey.num_values.get(name, 0) == 0]
        if empty:
            raise SchemaError(f"select.labels {labels} reads {', '.join(empty)}, null in all {survey.num_rows} scored "
                              f"rows. {_NO_REWARD}")  # fmt: skip
    if survey.num_ranked == 0:
        raise DataError(f"none of {survey.num_rows} scored rows can be ranked: {survey.excluded}.")


def _all_null(ranker: Ranker, term: Term, empty: Sequence[str], num_rows: int) -> str:
    if term in (EXPLICIT, EXPLICIT_SIGNED):
        kind = ranker.metric.explicit if term == EXPLICIT else "signed"
        reader = f"metric {ranker.metric.name} with the {kind} explicit margin"
        remedy = _NO_CANDIDATES if kind == "candidates" else _NO_REWARD
    elif term == UNIFORM:
        reader, remedy = "metric random", "Every scored row has an id; read the output of `alignpot score`."
    else:
        name = ranker.objective.name if ranker.objective is not None else "margin_implicit"
        reader, remedy = f"objective {name}", _NO_LOGP
    return f"{reader} reads {', '.join(empty)}, null in all {num_rows} scored rows. {remedy}"
