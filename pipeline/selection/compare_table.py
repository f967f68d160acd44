"""A comparison of selections as text."""

from collections.abc import Sequence

import numpy as np

from pipeline.metrics.columns import FloatArray
from pipeline.selection.compare import Comparison
from pipeline.selection.text import aligned


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
