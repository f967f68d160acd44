"""The rows that the selection benchmark ranks: two float64 margins a row, seeded by shard, without ties."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pipeline.selection import Query

SHARD_ROWS = 2**20
ROW_GROUP_ROWS = 2**20
NUM_FILES = 64
EXPLICIT, IMPLICIT = "margin_explicit", "margin_implicit"


def query(fraction: float) -> Query:
    """The selection that is timed: z(explicit) - z(|implicit|), margins read as they stand."""
    from pipeline.config import Metric, Select
    from pipeline.selection import Query

    return Query(objective=None, metric=Metric(), rule=Select(fraction=fraction))


def shard(index: int, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Margins of one shard: reward margins a little above zero, implicit ones wider and correlated with them."""
    rng = np.random.default_rng([7, index])
    explicit = rng.normal(0.8, 1.7, num_rows)
    implicit = rng.normal(0.1, 2.9, num_rows) + 0.4 * explicit
    return explicit, implicit


def margins(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Both columns in memory."""
    explicit, implicit = np.empty(num_rows), np.empty(num_rows)

    def fill(first: int) -> None:
        for index in range(first, -(-num_rows // SHARD_ROWS), 2):
            rows = slice(index * SHARD_ROWS, min((index + 1) * SHARD_ROWS, num_rows))
            explicit[rows], implicit[rows] = shard(index, rows.stop - rows.start)

    threads = [threading.Thread(target=fill, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return explicit, implicit


def write_parquet(folder: Path, num_rows: int) -> list[Path]:
    """The same kind of rows as Parquet files with pyarrow's defaults, in NUM_FILES files; kept if already there."""
    folder.mkdir(parents=True, exist_ok=True)
    per_file = -(-num_rows // NUM_FILES)
    paths = []
    for index in range(NUM_FILES):
        size = min(per_file, num_rows - index * per_file)
        if size <= 0:
            break
        paths.append(folder / f"{num_rows}-{index:05d}.parquet")
        if not paths[-1].exists():
            explicit, implicit = shard(index, size)
            table = pa.table({EXPLICIT: explicit, IMPLICIT: implicit})
            pq.write_table(table, paths[-1], row_group_size=ROW_GROUP_ROWS)
    return paths
