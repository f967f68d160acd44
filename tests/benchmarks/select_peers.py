"""What a user would write by hand instead of `alignpot select`.

    python -m tests.benchmarks.select_peers NAME SCORED OUT
    python -m tests.benchmarks.select_peers threshold NAME ROWS

Read the parts, z-score both margins, keep the best 40%, ties by id, write Parquet and a `save_to_disk` folder. Or
find the k-th largest of scores in memory; then the last line is a JSON object.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.benchmarks.peak import peak_mib
from tests.benchmarks.select_data import scores

FRACTION = 0.4
BETA = 0.1


def polars_script(scored: Path, output: Path) -> None:
    """Polars, lazily, in all threads."""
    import polars as pl

    rows = pl.scan_parquet(str(scored / "parts" / "*.parquet")).filter(pl.col("status") == "kept")
    chosen = pl.col("policy_logp_chosen") - pl.col("reference_logp_chosen")
    rejected = pl.col("policy_logp_rejected") - pl.col("reference_logp_rejected")
    explicit, implicit = pl.col("reward_chosen") - pl.col("reward_rejected"), (BETA * (chosen - rejected)).abs()

    def z(column: pl.Expr) -> pl.Expr:
        return (column - column.mean()) / column.std(ddof=0)

    scored_rows = rows.with_columns(potential=z(explicit) - z(implicit))
    narrow = scored_rows.select("id", "potential").collect()
    k = int(FRACTION * narrow.height)
    best = narrow.sort(["potential", "id"], descending=[True, False]).head(k)
    subset = scored_rows.join(best.lazy().select("id"), on="id", how="semi", maintain_order="left").collect()
    _write(subset.to_arrow(), output)


def duckdb_script(scored: Path, output: Path) -> None:
    """DuckDB in all threads."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(
        f"CREATE VIEW s AS SELECT *, reward_chosen - reward_rejected AS e, abs({BETA} * ((policy_logp_chosen -"
        " reference_logp_chosen) - (policy_logp_rejected - reference_logp_rejected))) AS i"
        f" FROM read_parquet('{scored}/parts/*.parquet') WHERE status = 'kept'"
    )
    stats = "SELECT avg(e), stddev_pop(e), avg(i), stddev_pop(i), count(*) FROM s"
    me, se, mi, si, num_rows = connection.execute(stats).fetchone()
    connection.execute(
        f"CREATE TABLE best AS SELECT id, (e - {me!r}) / {se!r} - (i - {mi!r}) / {si!r} AS potential FROM s"
        f" ORDER BY potential DESC, id LIMIT {int(FRACTION * num_rows)}"
    )
    subset = connection.execute("SELECT s.* EXCLUDE (e, i), potential FROM s JOIN best USING (id)").to_arrow_table()
    _write(subset, output)


def _write(table: object, output: Path) -> None:
    import pyarrow.parquet as pq
    from datasets import Dataset

    output.mkdir(parents=True)
    pq.write_table(table, output / "train.parquet", compression="zstd")
    Dataset(table).save_to_disk(str(output / "hf"))


def ours_threshold(values: np.ndarray, k: int) -> float:
    from pipeline.selection.threshold import kth_largest

    return kth_largest(values, k)


def numpy_threshold(values: np.ndarray, k: int) -> float:
    return float(np.partition(values, values.size - k)[values.size - k])


def polars_threshold(values: np.ndarray, k: int) -> float:
    import polars as pl

    place = (values.size - k) / (values.size - 1)
    return float(pl.Series(values).quantile(place, interpolation="nearest"))


def duckdb_threshold(values: np.ndarray, k: int) -> float:
    import duckdb
    import pyarrow as pa

    connection = duckdb.connect()
    connection.register("scores", pa.table({"score": values}))
    place = (values.size - k + 0.5) / values.size
    return float(connection.execute(f"SELECT quantile_disc(score, {place!r}) FROM scores").fetchone()[0])


SCRIPTS: dict[str, Callable[[Path, Path], None]] = {"polars": polars_script, "duckdb": duckdb_script}
THRESHOLDS: dict[str, Callable[[np.ndarray, int], float]] = {
    "ours": ours_threshold,
    "numpy": numpy_threshold,
    "polars": polars_threshold,
    "duckdb": duckdb_threshold,
}


def time_threshold(name: str, num_rows: int) -> dict[str, float]:
    """Seconds, the threshold found, and the peak memory with and without the scores."""
    THRESHOLDS[name](scores(1000), 400)
    values = scores(num_rows)
    before, start = peak_mib(), time.perf_counter()
    found = THRESHOLDS[name](values, int(FRACTION * num_rows))
    return {"s": time.perf_counter() - start, "threshold": found, "scores_mib": before, "peak_mib": peak_mib()}


if __name__ == "__main__":
    if sys.argv[1] == "threshold":
        print(json.dumps(time_threshold(sys.argv[2], int(sys.argv[3]))))
    else:
        SCRIPTS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
