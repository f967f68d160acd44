"""Which rows must be scored before a selection can be made, where some are skipped because others would be selected.

A skipped row has a bound, which its score does not exceed (see `metrics.bound`). Let the threshold be the k-th best
score of the rows that are scored; further rows can only raise it. A skipped row whose bound is below it is not selected
whatever its score. So once every other row is scored, the selection is the one of all scores. This holds for each group
of quotas with its own threshold, and for rows beyond `per_prompt`: a row is beyond it for good if the best rows of its
prompt, by score or bound, are all scored.

The first rows that are scored are a sample, which gives the statistics of the metric. It also shows about where the
threshold will be. So the next round takes the rows whose bounds reach that place, and one more round what is left.
"""

import math
from functools import partial
from typing import Final

import numpy as np

from pipeline import schema
from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.metrics.ids import HashArray
from pipeline.selection.columns import Columns
from pipeline.selection.fit import drawn
from pipeline.selection.ranking import Ranking
from pipeline.selection.rules import Groups, candidates, contest, ids_at, not_determined
from pipeline.selection.source import Positions, Source
from pipeline.selection.threshold import kth_largest

_SAMPLED: Final = schema.SCORINGS.index(schema.SAMPLED)


def first_rows(hashes: HashArray, statistics_rows: int) -> tuple[BoolArray, BoolArray]:
    """Rows to score before anything is known: those of the sample, and others that share an id with some row.

    Which of several rows of an id is kept depends on the scores of all of them.
    """
    ordered = np.sort(hashes)
    repeated = np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]])
    sample = drawn(hashes, np.ones(hashes.size, dtype=np.bool_), statistics_rows)
    return sample, repeated & ~sample


def next_rows(source: Source, columns: Columns, ranking: Ranking) -> Positions:
    """Ascending positions of the rows to score next; none if the selection can be made. Raises as `choose`."""
    bounds, undetermined = ranking.bounds, not_determined(ranking)
    if undetermined.size or not np.isfinite(bounds).any():
        return undetermined
    highest, _, groups = contest(columns, ranking, partial(ids_at, source))
    scored = np.where(np.isnan(bounds), highest, np.nan)
    sampled = np.where(columns.scoring == _SAMPLED, scored, np.nan)
    unscored = np.where(np.isnan(highest), np.nan, bounds)
    needed = np.zeros(bounds.size, dtype=np.bool_)
    for name, k in groups.wanted.items():
        rows = slice(None) if name is None else groups.rows[name]
        of_sample = sampled[rows][~np.isnan(sampled[rows])]
        guess = _kth(of_sample, round(k / groups.sizes[name] * of_sample.size) or 1)
        lowest = -math.inf if groups.whole else _kth(scored[rows], k)
        reaching = unscored[rows] >= lowest
        first = reaching & (unscored[rows] >= guess)
        if not first.any() and lowest == -math.inf and not groups.whole:
            first = unscored[rows] >= _kth(highest[rows], k)
        needed[rows] = first if first.any() else reaching
    return np.flatnonzero(needed)


def passed_over(source: Source, columns: Columns, ranking: Ranking, superset: float) -> BoolArray:
    """Rows that a proxy leaves out, by its own scores: those below the best of each group, `superset` times the wanted.

    Rows beyond `per_prompt` count among the best: which of a prompt's rows these are is for the policy to say. A row
    without a score is not left out. bool, over the rows of the ranking. Raises as `choose`.
    """
    rule, scores = ranking.query.rule, candidates(ranking)[0]
    *_, groups = contest(columns, ranking, partial(ids_at, source))
    every = Groups.of(rule, columns, scores)
    left_out = ~np.isnan(ranking.scores)
    for name, k in groups.wanted.items():
        rows = slice(None) if name is None else every.rows[name]
        most = min(every.sizes[name], math.ceil(superset * k))
        left_out[rows] &= ~(scores[rows] >= kth_largest(scores[rows], most))
    return left_out


def _kth(scores: FloatArray, k: int) -> float:
    """The k-th best; lowest of all if there are fewer."""
    return kth_largest(scores, k) if np.count_nonzero(~np.isnan(scores)) >= k else -math.inf
