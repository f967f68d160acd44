"""Lazy scoring on many margins without a model: how many rows it scores, and which ids its sample of rows moves."""

from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import Metric, Objective, Select
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.ids import id_hashes
from pipeline.selection import Query, TableSource
from pipeline.selection.lazy import first_rows, next_rows
from pipeline.selection.ranking import rank
from pipeline.selection.selection import Reader

DRAWN: Final = 20_000
SEEDS: Final = 5


def margins_like(implicit: FloatArray, num_rows: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Explicit margins, normal; and implicit ones, drawn from the real ones and smoothed, so that few are equal."""
    random = np.random.default_rng(seed)
    return random.normal(0.5, 1.0, num_rows), _smoothed(implicit, random.integers(implicit.size, size=num_rows), random)


def _smoothed(values: FloatArray, rows: Any, random: np.random.Generator) -> FloatArray:
    return values[rows] + random.normal(0.0, 0.1 * values.std(), rows.size)


def moved_by_the_sample(explicit: FloatArray, implicit: FloatArray, num_rows: int) -> dict[str, dict[str, float]]:
    """Share of a subset's ids that differ with statistics of a sample, by fraction: mean and highest of some seeds.

    Rows are drawn from these, both margins of a row together, and smoothed.
    """
    moved: dict[float, list[float]] = {0.1: [], 0.4: []}
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        rows = random.integers(implicit.size, size=num_rows)
        e, i = _smoothed(explicit, rows, random), np.abs(_smoothed(implicit, rows, random))
        sample = np.random.default_rng([seed, 1]).choice(num_rows, min(DRAWN, num_rows), replace=False)

        def potential(rows: Any, e: FloatArray = e, i: FloatArray = i) -> FloatArray:
            return (e - e.mean()) / e.std() - (i - i[rows].mean()) / i[rows].std()

        whole, of_sample = potential(slice(None)), potential(sample)
        for fraction, shares in moved.items():
            k = int(fraction * num_rows)
            first, second = (np.argpartition(-scores, k)[:k] for scores in (whole, of_sample))
            shares.append(np.setdiff1d(first, second, assume_unique=True).size / k)
    return {str(at): {"mean": float(np.mean(shares)), "highest": max(shares)} for at, shares in moved.items()}


def share_scored(
    explicit: FloatArray,
    implicit: FloatArray,
    fraction: float,
    weight: float = 1.0,
    *,
    num_tokens: FloatArray | None = None,
    statistics_rows: int = DRAWN,
) -> tuple[float, int]:
    """Share of the tokens (None: of the rows) that the rounds score, and how many rounds there are."""
    num_rows, i = explicit.size, np.abs(implicit)
    table = pa.table({
        schema.ID: [f"{row:08d}" for row in range(num_rows)],
        schema.REWARD_CHOSEN: explicit,
        schema.REWARD_REJECTED: np.zeros(num_rows),
        **{name: np.zeros(num_rows) for name in schema.LOGPS},
    })  # fmt: skip
    rule = Select(fraction=fraction)
    query = Query(objective=Objective(name="dpo", beta=1.0), metric=Metric(weight=weight), rule=rule)
    sample, _ = first_rows(id_hashes(table[schema.ID].combine_chunks()), statistics_rows)
    outcomes = np.where(sample, schema.SCORINGS.index(schema.SAMPLED), 0)
    place = table.schema.get_field_index(schema.POLICY_LOGP_CHOSEN)
    num_rounds = 1
    while True:
        known = table.set_column(place, schema.POLICY_LOGP_CHOSEN, pa.array(i, mask=outcomes == 0))
        known = known.append_column(schema.SCORING, pa.array(schema.SCORINGS).take(pa.array(outcomes)))
        source = TableSource(table=known)
        columns, repeats = Reader(source, [query]).for_query(query)
        rows = next_rows(source, columns, rank(columns, query, repeats))
        if not rows.size:
            return float(np.average(outcomes > 0, weights=num_tokens)), num_rounds
        outcomes[rows] = schema.SCORINGS.index(schema.SCORED)
        num_rounds += 1
