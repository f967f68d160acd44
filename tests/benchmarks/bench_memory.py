"""Peak memory of the driver as the dataset grows: `python -m tests.benchmarks.bench_memory`, and for one engine
`python -m tests.benchmarks.bench_memory --tiny-shards 100000 --engine ray`.

The rows carry their scores (`backend: columns`), so that nothing but reading, planning, committing and selecting is
measured. Each run is a process of its own; the figure is the largest resident set of that process, workers of Ray left
out. With Ray the driver plans, gathers summaries and selects: 600 rows beside 60,000. The plain loop reads and commits
in the same process and has its working set full only after some 60,000 rows: 60,000 beside 180,000. What Ray keeps of
each shard is seen in runs of the same rows in 500 and 1,500 shards. The last line is a JSON object.

With `--tiny-shards` one engine scores so many rows in shards of one row, and a hundredth of them, and nothing else is
measured: what plan, listing and manifest hold of each shard, in bytes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

SIZES = {"ray": (600, 60_000), "plain": (60_000, 180_000)}
SHARD_ROWS = 600
SMALL_SHARDS = (30_000, (60, 20))
"""Rows, and rows in a shard, of two runs that show what Ray keeps of each shard."""
ROWS_PER_FILE = 20_000
ROOT = Path(__file__).parents[2]

_RUN = """
import json, sys
from pipeline.config import load_config
from pipeline.commands import run_all
from pipeline.steps.score import prepare_score, score
from tests.benchmarks.peak import peak_mib
config = load_config(sys.argv[1])
list(run_all(config)) if config.select else score(*prepare_score(config))
print(json.dumps(peak_mib()))
"""


def write_source(folder: Path, num_rows: int) -> Path:
    """Parquet files of pairs with rewards, log-probs and token counts; texts of some 600 characters."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for first in range(0, num_rows, ROWS_PER_FILE):
        rows = range(first, min(first + ROWS_PER_FILE, num_rows))
        size = len(rows)
        turns = {
            name: [[{"role": role, "content": f"{name} {row} " + "lorem ipsum " * 50}] for row in rows]
            for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
        }
        scores = {
            "reward_chosen": rng.normal(1, 1, size),
            "reward_rejected": rng.normal(0, 1, size),
            "policy_logp_chosen": rng.normal(-200, 20, size),
            "policy_logp_rejected": rng.normal(-200, 20, size),
        }
        counts = {f"num_tokens_{name}": np.full(size, 100) for name in ("prompt", "chosen", "rejected")}
        table = pa.table({**turns, **scores, **counts})
        pq.write_table(table, folder / f"{first:09d}.parquet", row_group_size=1000)
    return folder


def peak_mib(workdir: Path, num_rows: int, engine: str, shard_rows: int = SHARD_ROWS, *, select: bool = True) -> float:
    """Largest resident set of the driver, in MiB."""
    config = {
        "source": {"path": str(write_source(workdir / "source", num_rows))},
        "policy": {"backend": "columns"},
        "reward": {"backend": "columns"},
        "scored": str(workdir / "scored"),
        **({"select": {"fraction": 0.4}, "output": {"path": str(workdir / "subset")}} if select else {}),
        "run": {"engine": engine, "shard_rows": shard_rows},
    }
    path = workdir / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-c", _RUN, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def measure(engine: str, sizes: tuple[int, int]) -> dict[str, float]:
    """Peaks of the small and the large run, and their ratio."""
    with tempfile.TemporaryDirectory(prefix="alignpot-memory-") as folder:
        small, large = (peak_mib(Path(folder) / str(num_rows), num_rows, engine) for num_rows in sizes)
    return {
        "rows": sizes[0],
        "mib": round(small),
        "rows_large": sizes[1],
        "mib_large": round(large),
        "ratio": round(large / small, 3),
    }


def kib_of_a_shard() -> float:
    """What the driver on Ray needs more for each further shard of the same rows, in KiB."""
    num_rows, (large, small) = SMALL_SHARDS
    with tempfile.TemporaryDirectory(prefix="alignpot-memory-") as folder:
        few, many = (peak_mib(Path(folder) / str(size), num_rows, "ray", size) for size in (large, small))
    return (many - few) * 1024 / (num_rows // small - num_rows // large)


def of_tiny_shards(num_shards: int, engine: str) -> dict[str, float]:
    """Peaks of two runs, and what an engine needs more for each further shard, in bytes."""
    few = num_shards // 100
    with tempfile.TemporaryDirectory(prefix="alignpot-memory-") as folder:
        peaks = [peak_mib(Path(folder) / str(size), size, engine, 1, select=False) for size in (few, num_shards)]
    bytes_of_a_shard = (peaks[1] - peaks[0]) * 2**20 / (num_shards - few)
    return {"mib_few": round(peaks[0]), "mib": round(peaks[1]), "bytes_of_a_shard": round(bytes_of_a_shard)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny-shards", type=int, help="shards of one row, and nothing else")
    parser.add_argument("--engine", choices=("plain", "ray"), default="plain", help="that runs the tiny shards")
    options = parser.parse_args()
    if options.tiny_shards:
        found = of_tiny_shards(options.tiny_shards, options.engine)
        print(json.dumps({"engine": options.engine, "tiny_shards": options.tiny_shards, **found}))
        return
    figures = {engine: measure(engine, sizes) for engine, sizes in SIZES.items()}
    for engine, figure in figures.items():
        sizes = f"{figure['rows']:,} rows {figure['mib']} MiB, {figure['rows_large']:,} rows {figure['mib_large']} MiB"
        print(f"{engine:6} {sizes}")
    shard = kib_of_a_shard()
    print(f"ray    {shard:.0f} KiB for each shard")
    print(json.dumps({**figures, "kib_of_a_shard": round(shard, 1)}))


if __name__ == "__main__":
    main()
