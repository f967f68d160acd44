"""Numbered rows of given explicit margins, and what a rule keeps of them."""

import pyarrow as pa

from pipeline.config import Metric, Objective, Select
from pipeline.selection import select
from tests.metrics.tables import scored_table
from tests.selection.sources import CountedSource

SIMPO = Objective()
EXPLICIT = Metric(name="explicit")


def run(table, metric=EXPLICIT, **rule):
    return select(CountedSource(table), SIMPO, metric, Select(**rule))


def margins(values):
    """Rows of these explicit margins, numbered."""
    table = scored_table(reward_chosen=list(values), reward_rejected=[0.0] * len(values))
    return table.append_column("row", pa.array(range(len(values))))


def with_columns(table, columns):
    for name, values in columns.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    return table


def rows_kept(table, selection):
    return set(selection.apply(table).column("row").to_pylist())
