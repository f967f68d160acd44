"""What a metric takes from the whole set: normalisers, the automatic weight, scales and ranges."""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from pipeline.errors import DataError
from pipeline.metrics.calibration import preference_scale
from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.metrics.ids import HashArray
from pipeline.metrics.length import GapSums, LengthFit, gap_sums
from pipeline.metrics.moments import Moments, moments_of
from pipeline.metrics.normalise import CONSISTENCY, Fitted, Normaliser, Ranks, Scale, checked_scale
from pipeline.metrics.potential import (
    BEES_LOWEST,
    BEES_RARE,
    EXPLICIT,
    EXPLICIT_SIGNED,
    IMPLICIT,
    Term,
    Terms,
    implicit_term,
)
from pipeline.metrics.ranker import LENGTH_GAP, Quantities, Ranker
from pipeline.metrics.ratio import RatioSample, automatic_ratio

DRAWN_ROWS: Final = 2**18
"""Rows that joint distributions are taken from: all rows of a smaller set."""
_LABEL_SMOOTHING: Final = 0.01
"""Labels that sigma-gap takes to be wrong, so that margins which no label contradicts have a scale."""
_BLOCK: Final = 2**18

_NAMES: Final[Mapping[Term, str]] = {EXPLICIT_SIGNED: "the explicit margin", IMPLICIT: "the implicit margin"}


def fit(
    ranker: Ranker, quantities: Quantities, ranked: BoolArray, hashes: HashArray, rewarded: BoolArray | None = None
) -> Fitted:
    """Fit a metric to the rows that are ranked.

    quantities: all that the ranker's terms are made of. ranked: bool [num_rows]. hashes: of the ids. rewarded: bool
    [num_rows], rows by which the explicit margin is normalised, if these are more.

    Raises:
        DataError: a margin has no spread, or the rows do not determine what is to be fitted.
    """
    needs, metric = ranker.needs, ranker.metric
    normalisers: dict[str, Normaliser] = {}
    moments: dict[Term, Moments] = {}
    sample: Terms = {}
    rows = dict.fromkeys(ranker.terms, ranked) | ({} if rewarded is None else {EXPLICIT: rewarded})
    if needs & {"moments"} or ("ratio" in needs and metric.ratio == "std"):
        moments = {term: ranked_moments(ranker.term(quantities, term), rows[term]) for term in ranker.terms}
    for term in ranker.terms:
        if "moments" in needs:
            normalisers[term] = checked_scale(moments[term].mean(), moments[term].std(), name=term,
                                              num_rows=moments[term].count)  # fmt: skip
        elif "medians" in needs:
            normalisers[term] = _robust_scale(ranker.term(quantities, term)[rows[term]], term)
        elif "ranks" in needs:
            normalisers[term] = Ranks(ordered=np.sort(ranker.term(quantities, term)[rows[term]]))
    if ranker.sampled_terms:
        sample = _drawn_terms(ranker, quantities, ranked, hashes)
    return Fitted(
        normalisers=normalisers,
        weight=_automatic_weight(ranker, normalisers, moments, sample) if "ratio" in needs else None,
        scales={term: preference_scale(sample[term], name=name, smoothing=_LABEL_SMOOTHING)
                for term, name in _NAMES.items()} if "scales" in needs else {},
        ranges={term: _range(term, ranker.term(quantities, term)[ranked])
                for term in ranker.terms} if "ranges" in needs else {},
    )  # fmt: skip


def fit_length(ranker: Ranker, quantities: Quantities, ranked: BoolArray) -> LengthFit | None:
    """What the length gap explains of the explicit margin of the ranked rows, if the metric takes it out.

    Raises:
        DataError: the two lengths of a pair differ by 2**24 tokens or more.
    """
    if not ranker.metric.takes_out_length:
        return None
    margins, gaps = quantities[ranker.signed], quantities[LENGTH_GAP]
    blocks = ((margins[block][ranked[block]], gaps[block][ranked[block]]) for block in blocks_of(margins.size))
    sums = sum((gap_sums(*block) for block in blocks), GapSums())
    return sums.line() if ranker.metric.length == "residual" else sums.curve()


def ranked_moments(values: FloatArray, ranked: BoolArray, *, absolute: bool = False) -> Moments:
    """The exact moments of the ranked rows' values, or of their absolute values, without a copy of them all."""
    blocks = (values[block][ranked[block]] for block in blocks_of(values.size))
    return sum((moments_of(np.abs(block) if absolute else block) for block in blocks), Moments())


def blocks_of(num_rows: int) -> Iterator[slice]:
    """Slices of so many rows, one after another, so that arithmetic on one takes little memory."""
    return (slice(start, start + _BLOCK) for start in range(0, num_rows, _BLOCK))


def drawn(hashes: HashArray, rows: BoolArray, num: int | None = None) -> BoolArray:
    """Of the rows, the `num` (or DRAWN_ROWS) with the smallest hashes: the same for any order; ties are all in."""
    num = DRAWN_ROWS if num is None else num
    num_rows = int(np.count_nonzero(rows))
    if num_rows <= num:
        return rows
    # Hashes are uniform: below this bound there are enough, and few to sort and copy.
    few = rows & (hashes <= np.uint64(min(2**64 - 1, 2 * num * 2**64 // num_rows)))
    rows = few if np.count_nonzero(few) >= num else rows
    highest = np.partition(hashes[rows], num - 1)[num - 1]
    within: BoolArray = rows & (hashes <= highest)
    return within


def _drawn_terms(ranker: Ranker, quantities: Quantities, ranked: BoolArray, hashes: HashArray) -> Terms:
    names = tuple(dict.fromkeys([*ranker.terms, *ranker.sampled_terms]))
    terms = {name: ranker.term(quantities, name) for name in names}
    for values in terms.values():
        ranked = ranked & np.isfinite(values)
    rows = drawn(hashes, ranked)
    picked = {name: values[rows] for name, values in terms.items()}
    order = np.lexsort([*picked.values(), hashes[rows]])
    return {name: values[order] for name, values in picked.items()}


def _robust_scale(values: FloatArray, term: Term) -> Scale:
    center = _median(values)
    return checked_scale(center, CONSISTENCY * _median(np.abs(values - center)), name=term, num_rows=values.size)


def _median(values: FloatArray) -> float:
    """The middle number, or the mean of the two middle ones, which cannot overflow."""
    middle = [(values.size - 1) // 2, values.size // 2]
    low, high = np.partition(values, middle)[middle].tolist()
    return float(low / 2 + high / 2)


def _automatic_weight(
    ranker: Ranker, normalisers: Mapping[str, Normaliser], moments: Mapping[Term, Moments], sample: Terms
) -> float:
    """The weight between normalised margins that the method's ratio between raw margins comes to."""
    implicit = implicit_term(ranker.metric)
    spreads = [
        scale.spread if isinstance(scale := normalisers.get(term), Scale) else 1.0 for term in (EXPLICIT, implicit)
    ]
    if ranker.metric.ratio == "std":
        # From the exact moments of all rows, so that it is 1 between z-scores.
        stds = [moments[term].std() for term in (EXPLICIT, implicit)]
        for term, std in zip((EXPLICIT, implicit), stds, strict=True):
            checked_scale(0.0, std, name=term, num_rows=moments[term].count)
        return (stds[0] / spreads[0]) / (stds[1] / spreads[1])
    rows = RatioSample(
        explicit=sample[EXPLICIT],
        implicit=sample[implicit],
        explicit_signed=sample.get(EXPLICIT_SIGNED, np.zeros(0)),
        implicit_signed=sample.get(IMPLICIT, np.zeros(0)),
    )
    return automatic_ratio(ranker.metric.ratio, rows) * spreads[1] / spreads[0]


def _range(term: Term, values: FloatArray) -> tuple[float, float]:
    rare = min(BEES_RARE, values.size)
    highest = float(np.partition(values, values.size - rare)[values.size - rare])
    if highest <= BEES_LOWEST:
        raise DataError(
            f"metric bees-mul clips {term} to {BEES_LOWEST} and its 30th largest value, which is {highest!r}: no range "
            "is left. Check the sign of the margins, or choose another metric."
        )
    return BEES_LOWEST, highest
