"""Reading two columns of Parquet, and selecting from them.

`python -m tests.benchmarks.select_files HOW FOLDER ROWS REPEATS`: each way runs in a process of its own. The last line
is a JSON object: seconds of the runs and peak memory in MiB.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tests.benchmarks.peak import peak_mib
from tests.benchmarks.select_data import EXPLICIT, IMPLICIT, write_parquet
from tests.benchmarks.select_peers import FRACTION

COLUMNS = [EXPLICIT, IMPLICIT]


def read_tables(paths: list[Path], *, memory_map: bool) -> None:
    """File after file, each by as many threads as there are cores."""
    for path in paths:
        pq.read_table(path, columns=COLUMNS, memory_map=memory_map)


def scan_dataset(paths: list[Path], batch_rows: int) -> None:
    """Every batch of a dataset scanner, which reads ahead in several files."""
    scanner = ds.dataset([str(path) for path in paths]).scanner(columns=COLUMNS, batch_size=batch_rows)
    for _ in scanner.to_batches():
        pass


def select(paths: list[Path]) -> None:
    """Our exact threshold."""
    from pipeline.data.parquet_scores import open_parquet_scores

    from pipeline.selection import select_many
    from tests.benchmarks.select_data import query

    [selection] = select_many(open_parquet_scores(paths), [query(FRACTION)], verify=False)
    assert math.isfinite(selection.threshold)


WAYS: dict[str, Callable[[list[Path]], None]] = {
    "read_table": lambda paths: read_tables(paths, memory_map=False),
    "read_table_mapped": lambda paths: read_tables(paths, memory_map=True),
    "scanner": lambda paths: scan_dataset(paths, 2**17),
    "scanner_1M": lambda paths: scan_dataset(paths, 2**20),
    "ours": select,
}


def main(how: str, folder: str, num_rows: int, repeats: int) -> None:
    paths = write_parquet(Path(folder), num_rows)
    # The first run fills the page cache, loads compiled code, and is not counted.
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        WAYS[how](paths)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds[1:], "peak_mib": round(peak_mib())}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
