"""A threshold from a single reading: a band guessed from a sample, rows counted above it, the few inside it held.

Scores of the z-scored potential are known only once the rows have been read, for they depend on the moments. But the
rank of a row follows from u = explicit - rho * implicit, where rho is the weight times a ratio of deviations, and a
sample tells rho and the threshold of u closely. Rows that lie on one side for every rho and threshold of the band are
settled while the moments are summed; the others are held, and ranked by their scores in the end. What the band
assumed is checked then: where it was wrong, or held too many rows, the general search follows. A guess costs passes,
never exactness.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

from pipeline.config import Labels
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.fitted import Fitted
from pipeline.metrics.kernels import Band, Kept, ScanCounts
from pipeline.metrics.margins import EXPLICIT_COLUMNS
from pipeline.metrics.normalise import Scale
from pipeline.metrics.potential import implicit_term
from pipeline.metrics.ranker import Ranker
from pipeline.metrics.terms import EXPLICIT, TermCache, finite_rows
from pipeline.selection.source import Part, ScoreSource, TableSource
from pipeline.selection.threshold import Cut, cut_among

LEAST_ROWS: Final = 2**12
"""Smaller samples tell too little; the general search is quick there."""
MOST_HELD: Final = 2**24
_ERRORS: Final = 4.0
_CLUSTER_ERRORS: Final = 6.0

Pair: TypeAlias = tuple[FloatArray, FloatArray]
"""Explicit and implicit terms of some rows."""


@dataclass(slots=True, kw_only=True)
class Between:
    """Rows counted above a band, and those that it does not settle."""

    band: Band
    limit: int
    num_above: int = 0
    num_held: int = 0
    held: list[Pair] = field(default_factory=list)

    @property
    def overflown(self) -> bool:
        """Whether too many rows were held, so that nothing more is."""
        return self.num_held > self.limit

    def add(self, counts: ScanCounts, kept: Kept) -> None:
        """Take in the scan of a block."""
        rows = slice(counts.num_kept)
        self._take(counts.num_above, [(kept.explicit[rows].copy(), kept.implicit[rows].copy())], counts.num_kept)

    def merge(self, other: "Between") -> None:
        """Take in the scan of other rows."""
        self._take(other.num_above, other.held, other.num_held)

    def _take(self, num_above: int, held: list[Pair], num_held: int) -> None:
        self.num_above += num_above
        self.num_held += num_held
        if self.overflown:
            self.held = []
        else:
            self.held.extend(held)


def guess_band(sample: Sequence[Pair], ranker: Ranker, share: float) -> Band | None:
    """The band of a ranking, `share` of whose rows are to be kept, from a sample; None where it cannot be guessed."""
    weight = ranker.fixed_weight
    if weight is None:
        return None
    if sum(explicit.size for explicit, _ in sample) < LEAST_ROWS:
        return None
    try:
        with np.errstate(all="ignore"):
            band = _band(sample, weight, share)
    except (ArithmeticError, ValueError):  # the sample, or a run of it, has no spread
        return None
    return band if all(map(math.isfinite, band[:4])) and not any(map(math.isnan, band)) else None


def settle(between: Between, ranker: Ranker, fitted: Fitted, k: int) -> Cut | None:
    """The cut, exactly; None where the band did not hold it."""
    scales = [fitted.normalisers[term] for term in ranker.terms]
    rank = k - between.num_above
    if between.overflown or not 1 <= rank <= between.num_held:
        return None
    explicit, implicit = (np.concatenate([pair[term] for pair in between.held]) for term in range(2))
    terms = dict(zip(ranker.terms, (explicit, np.abs(implicit) if _absolute(ranker) else implicit), strict=True))
    cut = cut_among(ranker.score_terms(terms, fitted), rank, between.num_above)
    weight = ranker.fixed_weight
    explicit_scale, implicit_scale = scales
    if weight is None or not isinstance(explicit_scale, Scale) or not isinstance(implicit_scale, Scale):
        return None
    return cut if _holds(between.band, explicit_scale, implicit_scale, weight, cut.threshold) else None


def _absolute(ranker: Ranker) -> bool:
    return ranker.metric.implicit == "absolute"


def sampled_terms(source: ScoreSource, labels: Labels, ranker: Ranker) -> list[Pair]:
    """Terms of some rows, by the run of rows that they are taken from."""
    sample = []
    label_columns = () if labels == "keep" else EXPLICIT_COLUMNS["signed"]
    for table in source.sample(tuple(dict.fromkeys([*ranker.columns, *label_columns]))):
        part = Part(source=TableSource(table=table), labels=labels)
        for block in part.blocks(ranker.columns):
            terms = ranker.compute(TermCache(block.rows))
            keep = finite_rows(terms)
            pair = (terms[EXPLICIT], terms[implicit_term(ranker.metric)])
            sample.append(pair if keep is None else (pair[0][keep], pair[1][keep]))
    return [pair for pair in sample if pair[0].size]


def _band(sample: Sequence[Pair], weight: float, share: float) -> Band:
    """Some standard errors around the ratio and the rank of the threshold.

    Errors are those of independent rows, or what runs of neighbouring rows differ by beyond that, if they do.
    """
    explicit, implicit = (np.concatenate([pair[term] for pair in sample]) for term in range(2))
    center_e, center_i = float(explicit.mean()), float(implicit.mean())
    explicit, implicit = explicit - center_e, implicit - center_i
    variance_e, variance_i = float(explicit.var()), float(implicit.var())
    rho = weight * math.sqrt(variance_e / variance_i)
    # What a row adds to the logarithm of the ratio: its spread gives the standard error, however the terms depend.
    error = float((explicit**2 / variance_e - implicit**2 / variance_i).std()) / (2 * math.sqrt(explicit.size))
    ratios = [math.log(weight * float(e.std()) / float(i.std()) / rho) for e, i in sample if e.size > 1]
    spread = math.hypot(_ERRORS * error, _excess_error(ratios, error * math.sqrt(len(sample))))
    rho_low, rho_high = rho * math.exp(-spread), rho * math.exp(spread)
    scores = explicit - rho * implicit
    low, high = _ranks(scores, [pair[0].size for pair in sample], share)
    if low < 0 or high >= scores.size:
        return Band(center_e, center_i, rho_low, rho_high, -math.inf, math.inf)
    tau_low, tau_high = np.partition(scores, [low, high])[[low, high]].tolist()
    # Centred on the rows near the threshold, their places hardly depend on the ratio.
    near = float(implicit[(scores >= tau_low) & (scores <= tau_high)].mean())
    rest = 0.05 * (rho_high - rho_low) * math.sqrt(variance_i)
    low_at, high_at = tau_low + rho * near - rest, tau_high + rho * near + rest
    return Band(center_e, center_i + near, rho_low, rho_high, low_at, high_at)


def _ranks(scores: FloatArray, sizes: Sequence[int], share: float) -> tuple[int, int]:
    """Ranks from below between which the threshold lies, as indices into the sorted sample; they may lie outside."""
    size = scores.size
    place = min(size - 1, math.floor(size * (1 - share)))
    threshold = float(np.partition(scores, place)[place])
    runs = np.split(scores, np.cumsum(sizes)[:-1])
    binomial = math.sqrt(share * (1 - share) / size)
    excess = _excess_error([float(np.mean(run > threshold)) for run in runs], binomial * math.sqrt(len(runs)))
    margin = math.hypot(_ERRORS * binomial, excess) + 1 / size
    return math.floor(size * (1 - share - margin)), math.ceil(size * (1 - share + margin))


def _excess_error(figures: Sequence[float], expected: float) -> float:
    """Standard errors of the mean of the figures of runs, as far as they vary by more than `expected`."""
    finite = [figure for figure in figures if math.isfinite(figure)]
    if len(finite) < 2:
        return 0.0
    excess = max(float(np.var(finite, ddof=1)) - expected**2, 0.0)
    return _CLUSTER_ERRORS * math.sqrt(excess / len(finite))


def _holds(band: Band, explicit: Scale, implicit: Scale, weight: float, threshold: float) -> bool:
    """Whether ratio and threshold lie where the band assumed them, by more than the rounding of scores."""
    rho = weight * explicit.spread / implicit.spread
    shift_e, shift_i = explicit.center - band.centre_explicit, implicit.center - band.centre_implicit
    tau = threshold * explicit.spread + shift_e - rho * shift_i
    pad = 2.0**-48 * (abs(tau) + abs(threshold * explicit.spread) + abs(shift_e) + rho * abs(shift_i)) + 2.0**-1000
    tight = 1 + 2.0**-50
    in_ratio = band.rho_low * tight <= rho <= band.rho_high / tight
    return in_ratio and band.tau_low + pad <= tau <= band.tau_high - pad
