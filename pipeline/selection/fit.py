"""What metrics take from the whole set: normalisers, automatic weights, scales and ranges, in one pass or a few.

One pass surveys the rows for all rankers at once. Medians take further passes, again for all rankers at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics.calibration import preference_scale
from pipeline.metrics.fitted import Fitted
from pipeline.metrics.kernels import Band
from pipeline.metrics.normalise import CONSISTENCY, Normaliser, Ranks, Scale, checked_scale
from pipeline.metrics.potential import BEES_LOWEST, implicit_term
from pipeline.metrics.ranker import Ranker
from pipeline.metrics.ratio import RatioSample, automatic_ratio
from pipeline.metrics.terms import EXPLICIT, EXPLICIT_SIGNED, IMPLICIT, Term
from pipeline.selection.one_pass import Between
from pipeline.selection.passes import Passes
from pipeline.selection.source import Part
from pipeline.selection.streams import TermStream
from pipeline.selection.survey import Survey, SurveyKey, SurveyTask, check_rankable, survey_key
from pipeline.selection.threshold import Search, find_cuts

LABEL_SMOOTHING: Final = 0.01
"""Labels that sigma-gap takes to be wrong, so that margins which no label contradicts have a scale."""

_NAMES: Final[Mapping[Term, str]] = {EXPLICIT_SIGNED: "the explicit margin", IMPLICIT: "the implicit margin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What is known of the set under a ranker."""

    survey: Survey
    fitted: Fitted
    between: Between | None = None


def fit(
    passes: Passes, parts: Sequence[Part], rankers: Sequence[Ranker], bands: Sequence[Band | None] | None = None
) -> list[Fit]:
    """Survey the rows and fit each ranker, and see what lies around the band of each, where there is one.

    Raises:
        SchemaError: a column is missing, of another type, or null in every row.
        DataError: no row can be ranked, a margin has no spread, or the rows do not determine what is to be fitted.
    """
    distinct = {survey_key(ranker): ranker for ranker in rankers}
    guesses: dict[SurveyKey, list[Band]] = {key: [] for key in distinct}
    places: list[int | None] = []
    for ranker, band in zip(rankers, bands or [None] * len(rankers), strict=True):
        of_key = guesses[survey_key(ranker)]
        places.append(None if band is None else len(of_key))
        of_key += [] if band is None else [band]
    surveys = {key: Survey() for key in distinct}
    task = SurveyTask(rankers=tuple(distinct.values()), bands=tuple(map(tuple, guesses.values())))
    for of_part in passes.run(task, parts):
        for key, survey in zip(distinct, of_part, strict=True):
            surveys[key].merge(survey)
    for key, ranker in distinct.items():
        check_rankable(surveys[key], ranker, labels=parts[0].labels)
    medians = _medians(passes, parts, {key: r for key, r in distinct.items() if "medians" in r.needs}, surveys)
    fits = []
    for ranker, place in zip(rankers, places, strict=True):
        key = survey_key(ranker)
        between = None if place is None else surveys[key].between[place]
        fitted = _fitted(ranker, surveys[key], medians.get(key, {}))
        fits.append(Fit(survey=surveys[key], fitted=fitted, between=between))
    return fits


def _fitted(ranker: Ranker, survey: Survey, medians: Mapping[Term, Scale]) -> Fitted:
    needs = ranker.needs
    normalisers: dict[str, Normaliser] = {}
    if "moments" in needs:
        for term in ranker.terms:
            moments = survey.moments[term]
            normalisers[term] = checked_scale(moments.mean(), moments.std(), name=term, num_rows=moments.count)
    if "medians" in needs:
        normalisers.update({term: medians[term] for term in ranker.terms})
    if "ranks" in needs:
        for term in ranker.terms:
            buckets = np.flatnonzero(survey.histograms[term])
            normalisers[term] = Ranks(buckets=buckets, counts=survey.histograms[term][buckets])
    return Fitted(
        normalisers=normalisers,
        weight=_automatic_weight(ranker, survey, normalisers) if "ratio" in needs else None,
        scales=_scales(survey) if "scales" in needs else {},
        ranges={term: _range(term, survey.largest[term]) for term in ranker.terms} if "ranges" in needs else {},
    )


def _automatic_weight(ranker: Ranker, survey: Survey, normalisers: Mapping[str, Normaliser]) -> float:
    """The weight between normalised margins that the method's ratio between raw margins comes to."""
    implicit = implicit_term(ranker.metric)
    spreads = [
        scale.spread if isinstance(scale := normalisers.get(term), Scale) else 1.0 for term in (EXPLICIT, implicit)
    ]
    if ranker.metric.ratio == "std":
        # From the exact moments of all rows, so that it is 1 between z-scores.
        stds = [survey.moments[term].std() for term in (EXPLICIT, implicit)]
        for term, std in zip((EXPLICIT, implicit), stds, strict=True):
            checked_scale(0.0, std, name=term, num_rows=survey.num_ranked)
        return (stds[0] / spreads[0]) / (stds[1] / spreads[1])
    rows = survey.drawn.rows()
    sample = RatioSample(
        explicit=rows[EXPLICIT],
        implicit=rows[implicit],
        explicit_signed=rows.get(EXPLICIT_SIGNED, np.zeros(0)),
        implicit_signed=rows.get(IMPLICIT, np.zeros(0)),
    )
    return automatic_ratio(ranker.metric.ratio, sample) * spreads[1] / spreads[0]


def _scales(survey: Survey) -> dict[str, float]:
    rows = survey.drawn.rows()
    return {term: preference_scale(rows[term], name=name, smoothing=LABEL_SMOOTHING) for term, name in _NAMES.items()}


def _range(term: Term, largest: Sequence[float]) -> tuple[float, float]:
    highest = min(largest)
    if highest <= BEES_LOWEST:
        raise DataError(
            f"metric bees-mul clips {term} to {BEES_LOWEST} and its 30th largest value, which is {highest!r}: no range "
            "is left. Check the sign of the margins, or choose another metric."
        )
    return BEES_LOWEST, highest


def _medians(
    passes: Passes, parts: Sequence[Part], rankers: Mapping[SurveyKey, Ranker], surveys: Mapping[SurveyKey, Survey]
) -> dict[SurveyKey, dict[Term, Scale]]:
    """Median and MAD of each term, exactly."""
    centers = _middles(passes, parts, [
        (key, TermStream(ranker=ranker, term=term)) for key, ranker in rankers.items() for term in ranker.terms
    ], surveys)  # fmt: skip
    deviations = _middles(passes, parts, [
        (key, TermStream(ranker=stream.ranker, term=stream.term, center=center))
        for (key, stream), center in centers
    ], surveys)  # fmt: skip
    scales: dict[SurveyKey, dict[Term, Scale]] = {key: {} for key in rankers}
    for (_, center), ((key, stream), deviation) in zip(centers, deviations, strict=True):
        scales[key][stream.term] = checked_scale(
            center, CONSISTENCY * deviation, name=stream.term, num_rows=surveys[key].num_ranked
        )
    return scales


def _middles(
    passes: Passes,
    parts: Sequence[Part],
    streams: Sequence[tuple[SurveyKey, TermStream]],
    surveys: Mapping[SurveyKey, Survey],
) -> list[tuple[tuple[SurveyKey, TermStream], float]]:
    """The median of each stream: the mean of the two middle numbers where there is an even number of them."""
    searches = []
    for key, stream in streams:
        num_rows = surveys[key].num_ranked
        sample = surveys[key].sample.rows()[stream.term]
        sample = sample if stream.center is None else np.abs(sample - stream.center)
        searches += [[Search(num_rows // 2 + 1, num_rows, sample)], [Search((num_rows + 1) // 2, num_rows, sample)]]
    cuts = find_cuts(passes, parts, [stream for _, stream in streams for _ in range(2)], searches)
    middles = [cut.threshold for [cut] in cuts if cut is not None]
    means = [low / 2 + high / 2 for low, high in zip(middles[::2], middles[1::2], strict=True)]
    return list(zip(streams, means, strict=True))
