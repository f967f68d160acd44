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

from pipeline.errors import DataError
from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.metrics.ranks import average_ranks
from pipeline.selection.fit import drawn
from pipeline.selection.passes import Passes
from pipeline.selection.ranking import Query
from pipeline.selection.selection import select_many
from pipeline.selection.source import Source
from pipeline.selection.text import aligned


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


def compare(source: Source, queries: Mapping[str, tuple[str, Query]], passes: Passes | None = None) -> Comparison:
    """Compare selections of one set of rows: by label, the name of the metric and the query.

    Raises:
        DataError: no row is ranked by all of them.
    """
    labels = tuple(queries)
    found = list(select_many(source, [query for _, query in queries.values()], passes))
    kept = [each.selection.positions for each in found]
    num_both = np.array([[np.intersect1d(a, b, assume_unique=True).size for b in kept] for a in kept])
    ranked = np.logical_and.reduce([~np.isnan(each.ranking.scores) for each in found])
    rows = np.flatnonzero(drawn(found[0].columns.hashes, ranked))
    if not rows.size:
        raise DataError(f"no row has a score under each of {list(labels)}. Compare metrics whose columns are there.")
    sizes = np.diag(num_both)
    either = sizes[:, None] + sizes[None, :] - num_both
    # Selections of one metric rank alike, so the first stands for all.
    first = {metric: i for i, (metric, _) in reversed(list(enumerate(queries.values())))}
    metrics = tuple(dict.fromkeys(metric for metric, _ in queries.values()))
    # In order of the hashes, so that a tie at the end of a selection is cut alike in any order of the rows.
    rows = rows[np.argsort(found[0].columns.hashes[rows], kind="stable")]
    scores = [found[first[metric]].ranking.scores[rows] for metric in metrics]
    shares = [Fraction(each.selection.k, each.selection.num_ranked) for each in found]
    places = [(metrics.index(metric), share) for (metric, _), share in zip(queries.values(), shares, strict=True)]
    return Comparison(
        labels=labels,
        metrics=metrics,
        num_selected=sizes,
        overlap=num_both / np.maximum(either, 1),
        rank_correlation=_spearman(scores),
        contradiction=_contradictions(scores, places),
        num_sampled=scores[0].size,
    )


def compare_scores(
    scores: Mapping[str, FloatArray], given: Mapping[str, tuple[str, BoolArray]], share: Fraction
) -> Comparison:
    """Compare what metrics rank first, by the scores of the same rows, in an order that ties are cut by.

    given: further selections by name: the metric that they are by, and which rows they keep. share: of the rows, what
    each metric keeps.
    """
    size = next(iter(scores.values())).size
    kept = {name: rows for name, (_, rows) in given.items()}
    for name, values in scores.items():
        kept[name] = np.zeros(size, dtype=np.bool_)
        kept[name][np.argsort(-values, kind="stable")[: int(share * size)]] = True
    num_both = np.array([[np.count_nonzero(a & b) for b in kept.values()] for a in kept.values()])
    sizes, metrics = np.diag(num_both), tuple(scores)
    places = [*(metrics.index(metric) for metric, _ in given.values()), *range(len(metrics))]
    return Comparison(
        labels=tuple(kept),
        metrics=metrics,
        num_selected=sizes,
        overlap=num_both / np.maximum(sizes[:, None] + sizes[None, :] - num_both, 1),
        rank_correlation=_spearman(list(scores.values())),
        contradiction=_contradictions(list(scores.values()), [(place, share) for place in places]),
        num_sampled=size,
    )


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


def render_comparison(comparison: Comparison) -> str:
    """The comparison as tables for the terminal; columns are numbered as the rows of their kind."""
    labels = [f"[{i}] {label}" for i, label in enumerate(comparison.labels, start=1)]
    metrics = [f"({i}) {metric}" for i, metric in enumerate(comparison.metrics, start=1)]
    sizes = [(label, f"{size:,}") for label, size in zip(labels, comparison.num_selected.tolist(), strict=True)]
    tables = [
        ("Selections, and the rows they keep", aligned(sizes)),
        ("Overlap: rows in both / rows in either", _table(comparison.overlap, labels, labels)),
        ("Spearman's rank correlation of the metrics' scores", _table(comparison.rank_correlation, metrics, metrics)),
        (
            "Contradiction: share of a selection that a metric ranks last, among as many rows",
            _table(comparison.contradiction, labels, metrics),
        ),
    ]
    note = f"The last two are taken on {comparison.num_sampled:,} rows that every metric ranks."
    return "\n\n".join([*(f"{title}\n{table}" for title, table in tables), note])


def _table(values: FloatArray, rows: Sequence[str], columns: Sequence[str]) -> str:
    heads = [column.partition(" ")[0] for column in columns]
    cells = [tuple("-" if np.isnan(value) else f"{value:.2f}" for value in line) for line in values]
    return aligned([("", *heads), *((row, *line) for row, line in zip(rows, cells, strict=True))])
