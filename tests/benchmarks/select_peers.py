"""The engines of the selection benchmark: `python -m tests.benchmarks.select_peers NAME ROWS REPEATS` runs one.

Every engine gets the same two float64 arrays and finds the rows of the best 40% by z(explicit) - z(|implicit|). What
is timed ends with those rows: as their indices, or as a mask in our case. The last line is a JSON object: seconds of
the runs, peak memory in MiB, and a digest of the set of rows.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable

import numpy as np

from tests.benchmarks.peak import peak_mib
from tests.benchmarks.select_data import margins

FRACTION = 0.4
LONG_S = 10.0
"""A run longer than this is not repeated."""

Engine = Callable[[np.ndarray, np.ndarray], Callable[[], np.ndarray]]
"""From the arrays to the work that is timed; loading an engine's own format from memory is not."""


def z_scores(explicit: np.ndarray, implicit: np.ndarray) -> np.ndarray:
    """The potential as the paper's code computes it."""
    magnitude = np.abs(implicit)
    return (explicit - explicit.mean()) / explicit.std() - (magnitude - magnitude.mean()) / magnitude.std()


def paper_argsort(explicit: np.ndarray, implicit: np.ndarray) -> Callable[[], np.ndarray]:
    """The paper's code: sort all scores."""
    k = math.floor(explicit.size * FRACTION)
    return lambda: np.argsort(z_scores(explicit, implicit))[-k:]


def numpy_argpartition(explicit: np.ndarray, implicit: np.ndarray) -> Callable[[], np.ndarray]:
    """The same, without the order that nobody needs."""
    k = math.floor(explicit.size * FRACTION)
    return lambda: np.argpartition(z_scores(explicit, implicit), explicit.size - k)[-k:]


def polars_quantile(explicit: np.ndarray, implicit: np.ndarray) -> Callable[[], np.ndarray]:
    """A lazy query that filters by the quantile at which exactly k rows remain, on both cores."""
    import polars as pl

    size = explicit.size
    k = math.floor(size * FRACTION)
    frame = pl.DataFrame({"explicit": explicit, "implicit": implicit})

    def z(column: pl.Expr) -> pl.Expr:
        return (column - column.mean()) / column.std(ddof=0)

    score = z(pl.col("explicit")) - z(pl.col("implicit").abs())
    keep = pl.col("score") >= pl.col("score").quantile((size - k) / (size - 1), interpolation="nearest")
    query = frame.lazy().select(score=score).select(keep.arg_true().alias("row"))
    return lambda: query.collect().get_column("row").to_numpy()


def _duckdb(explicit: np.ndarray, implicit: np.ndarray, ending: str) -> Callable[[], np.ndarray]:
    import duckdb
    import pyarrow as pa

    table = pa.table({"row": np.arange(explicit.size), "e": explicit, "a": implicit})
    connection = duckdb.connect(config={"threads": 2})
    connection.register("margins", table)
    query = (
        "WITH m AS (SELECT avg(e) AS me, stddev_pop(e) AS se, avg(abs(a)) AS ma, stddev_pop(abs(a)) AS sa"
        " FROM margins),"
        f" s AS (SELECT row, (e - me) / se - (abs(a) - ma) / sa AS score FROM margins, m) SELECT row FROM s {ending}"
    )
    return lambda: connection.execute(query).fetchnumpy()["row"]


def duckdb_order_limit(explicit: np.ndarray, implicit: np.ndarray) -> Callable[[], np.ndarray]:
    """ORDER BY ... LIMIT k on two threads."""
    k = math.floor(explicit.size * FRACTION)
    return _duckdb(explicit, implicit, f"ORDER BY score DESC LIMIT {k}")


def duckdb_quantile(explicit: np.ndarray, implicit: np.ndarray) -> Callable[[], np.ndarray]:
    """A filter by the exact discrete quantile, on two threads."""
    size = explicit.size
    share = (size - math.floor(size * FRACTION) + 0.5) / size
    return _duckdb(explicit, implicit, f"WHERE score >= (SELECT quantile_disc(score, {share!r}) FROM s)")


def ours(explicit: np.ndarray, implicit: np.ndarray) -> Callable[[], np.ndarray]:
    """The exact threshold, then the mask, in threads."""
    import pyarrow as pa

    from pipeline.selection import TableSource, kept_mask, select_many
    from tests.benchmarks.select_data import EXPLICIT, IMPLICIT, query

    source = TableSource(table=pa.table({EXPLICIT: explicit, IMPLICIT: implicit}))
    return lambda: kept_mask(source, select_many(source, [query(FRACTION)], verify=False)[0])


ENGINES: dict[str, Engine] = {
    "ours": ours,
    "paper_argsort": paper_argsort,
    "numpy_argpartition": numpy_argpartition,
    "polars_quantile": polars_quantile,
    "duckdb_order_limit": duckdb_order_limit,
    "duckdb_quantile": duckdb_quantile,
}


def digest(rows: np.ndarray, num_rows: int) -> str:
    """Of the set of rows, given as indices or as a mask."""
    mask = rows
    if rows.dtype != np.bool_:
        mask = np.zeros(num_rows, dtype=np.bool_)
        mask[rows] = True
    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16]


def main(name: str, num_rows: int, repeats: int) -> None:
    # Compiling and loading are no part of selecting.
    ENGINES[name](*margins(10_000))()
    explicit, implicit = margins(num_rows)
    run = ENGINES[name](explicit, implicit)
    seconds: list[float] = []
    rows = None
    while len(seconds) < repeats and max(seconds, default=0.0) < LONG_S:
        rows = None
        start = time.perf_counter()
        rows = run()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "peak_mib": round(peak_mib()), "digest": digest(rows, num_rows)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
