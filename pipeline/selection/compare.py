"""How far metrics and ratios agree on one set of rows: what they select, how they rank, and where they are opposed.

Overlaps are exact, counted over all rows. Rank correlations and contradictions are taken on a sample drawn by a hash
of ids, which holds every row of a set of up to 262,144. All numbers are the same for any order and partition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schema
from pipeline.errors import DataError
from pipeline.metrics.columns import FloatArray, single_array
from pipeline.metrics.ranks import average_ranks
from pipeline.metrics.terms import TermCache
from pipeline.selection.passes import Passes
from pipeline.selection.samples import DrawnSample
from pipeline.selection.selection import Selection
from pipeline.selection.source import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Selections side by side, and their metrics.

    labels, metrics: names of the selections, and of the metrics they are by. num_selected: rows each keeps, int64
    [num]. overlap: |A and B| / |A or B|, float64 [num, num], over all rows. rank_correlation: Spearman's, of the
    metrics' scores, float64 [num_metrics, num_metrics]. contradiction: share of A's rows that are among as many last
    ones of a metric, float64 [num, num_metrics], NaN above one half of the rows. num_sampled: rows that these two are
    taken on.
    """

    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    num_selected: npt.NDArray[np.int64]
    overlap: FloatArray
    rank_correlation: FloatArray
    contradiction: FloatArray
    num_sampled: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a correlation that is not defined is null."""
        return {
            "selected": dict(zip(self.labels, self.num_selected.tolist(), strict=True)),
            "overlap": _by_name(self.overlap, self.labels, self.labels),
            "rank_correlation": _by_name(self.rank_correlation, self.metrics, self.metrics),
            "contradiction": _by_name(self.contradiction, self.labels, self.metrics),
            "num_sampled": self.num_sampled,
        }


def _by_name(values: FloatArray, rows: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, float | None]]:
    cells = [[None if np.isnan(value) else float(value) for value in line] for line in values]
    return {row: dict(zip(columns, line, strict=True)) for row, line in zip(rows, cells, strict=True)}


@dataclass(slots=True)
class _Both:
    """Rows that two selections both keep, int64 [num, num], and a sample of scores by label."""

    num_both: npt.NDArray[np.int64]
    drawn: DrawnSample[str]

    def merge(self, other: "_Both") -> None:
        self.num_both += other.num_both
        self.drawn.merge(other.drawn)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareTask:
    """Counts on one part; picklable."""

    labels: tuple[str, ...]
    selections: Sequence[Selection]

    def __call__(self, part: Part) -> _Both:
        """The counts."""
        both = empty(len(self.labels))
        for block in part.blocks([schema.ID, *(name for selection in self.selections for name in selection.columns)]):
            cache = TermCache(block.rows)
            masks = np.array([selection.mask_of(block, cache) for selection in self.selections])
            counts = masks.astype(np.float64)
            both.num_both += (counts @ counts.T).astype(np.int64)
            scores = [selection.ranker.score(cache, selection.fitted) for selection in self.selections]
            ranked = np.isfinite(np.array(scores)).all(axis=0)
            ids = single_array(block.rows, schema.ID).filter(pa.array(ranked))
            both.drawn.add(ids, {label: s[ranked] for label, s in zip(self.labels, scores, strict=True)})
        return both


def empty(num: int) -> _Both:
    """Counts of no rows."""
    return _Both(np.zeros((num, num), dtype=np.int64), DrawnSample())


def compare(passes: Passes, parts: Sequence[Part], selections: Mapping[str, tuple[str, Selection]]) -> Comparison:
    """Compare selections of one set of rows: by label, the name of the metric and the selection.

    Raises:
        DataError: no row is ranked by all of them.
    """
    labels = tuple(selections)
    task = CompareTask(labels=labels, selections=[selection for _, selection in selections.values()])
    whole = empty(len(labels))
    for of_part in passes.run(task, parts):
        whole.merge(of_part)
    rows = whole.drawn.rows()
    if not rows or not next(iter(rows.values())).size:
        raise DataError(f"no row has a score under each of {list(labels)}. Compare metrics whose columns are there.")
    sizes = np.diag(whole.num_both)
    either = sizes[:, None] + sizes[None, :] - whole.num_both
    # Selections of one metric rank alike, so that the first stands for all.
    first = {metric: label for label, (metric, _) in reversed(list(selections.items()))}
    metrics = tuple(dict.fromkeys(metric for metric, _ in selections.values()))
    scores = [rows[first[metric]] for metric in metrics]
    places = [(metrics.index(metric), _share(selection)) for metric, selection in selections.values()]
    return Comparison(
        labels=labels,
        metrics=metrics,
        num_selected=sizes,
        overlap=whole.num_both / np.maximum(either, 1),
        rank_correlation=_spearman(scores),
        contradiction=_contradictions(scores, places),
        num_sampled=scores[0].size,
    )


def _share(selection: Selection) -> Fraction:
    return Fraction(selection.k, max(1, selection.num_ranked))


def _spearman(scores: Sequence[FloatArray]) -> FloatArray:
    """Correlations of average ranks."""
    ranks = np.array([average_ranks(values) for values in scores])
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: FloatArray = np.atleast_2d(np.corrcoef(ranks))
    return correlation


def _contradictions(scores: Sequence[FloatArray], places: Sequence[tuple[int, Fraction]]) -> FloatArray:
    """For each selection, its metric's place and its share of the rows: how much of it each metric ranks last."""
    size = scores[0].size
    orders = [np.argsort(values, kind="stable") for values in scores]
    result = np.zeros((len(places), len(scores)))
    for i, (metric, share) in enumerate(places):
        num = max(1, int(share * size))
        if 2 * num > size:  # best and last rows overlap
            result[i] = np.nan
            continue
        best = np.zeros(size, dtype=np.bool_)
        best[orders[metric][-num:]] = True
        result[i] = [np.count_nonzero(best[order[:num]]) / num for order in orders]
    return result
