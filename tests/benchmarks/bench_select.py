"""`alignpot select` beside what one would write by hand: `python -m tests.benchmarks.bench_select`.

Each run is a process, from its start to its files: a scored dataset with texts of UltraFeedback's lengths, the best 40%
by the potential under dpo, written as Parquet and as a `save_to_disk` folder. The scripts of polars and duckdb do the
same and must keep the same rows; runs alternate, and figures are medians. Then the threshold alone, over scores in
memory. The last line is a JSON object.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq
import yaml

from tests.benchmarks.select_data import scored_dataset
from tests.benchmarks.select_peers import FRACTION, SCRIPTS, THRESHOLDS

SIZES = {1_000: (4,), 60_000: (12, 24), 600_000: (12, 24)}
"""Rows, and the numbers of files they come in."""


def machine() -> str:
    """Processor, cores and load."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def command_of(name: str, scored: str, output: Path) -> list[str]:
    """The command line of ours, or of a script."""
    if name != "ours":
        return [sys.executable, "-m", "tests.benchmarks.select_peers", name, scored, str(output)]
    config = output.with_suffix(".yaml")
    sections = {
        "scored": scored,
        "objective": {"name": "dpo", "beta": 0.1},
        "select": {"fraction": FRACTION},
        "output": {"path": str(output), "formats": ["hf", "parquet"]},
    }
    config.write_text(yaml.safe_dump(sections))
    return [str(Path(sys.executable).with_name("alignpot")), "select", str(config)]


def timed(name: str, scored: str, folder: Path) -> tuple[float, set[str]]:
    """Seconds of one run, and the ids it kept."""
    output = folder / f"out-{name}"
    command = command_of(name, scored, output)
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    files = list(output.rglob("*.parquet"))
    kept = {id_ for path in files for id_ in pq.read_table(path, columns=["id"]).column("id").to_pylist()}
    shutil.rmtree(output)
    return seconds, kept


def compare_commands(folder: Path, num_rows: int, num_files: int, repeats: int) -> dict[str, float]:
    """Median seconds of each; refused where they keep other rows."""
    scored = scored_dataset(folder, num_rows, num_files)
    names = ["ours", *SCRIPTS]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    expected = timed("ours", scored, folder)[1]
    for _ in range(repeats):
        for name in names:
            taken, kept = timed(name, scored, folder)
            if kept != expected:
                raise RuntimeError(f"{name} keeps other rows than alignpot select of {num_rows:,}")
            seconds[name].append(taken)
    medians = {name: median(values) for name, values in seconds.items()}
    line = "  ".join(f"{name} {taken:6.2f} s" for name, taken in medians.items())
    print(f"{num_rows:>9,} rows in {num_files:>2} files  {line}  ours/polars {medians['ours'] / medians['polars']:.2f}")
    sys.stdout.flush()
    return {f"{name}_s": round(taken, 2) for name, taken in medians.items()}


def compare_thresholds(num_rows: int, repeats: int) -> dict[str, dict[str, float]]:
    """The threshold alone, each engine in a process of its own; refused where they find another one."""
    found: dict[str, dict[str, float]] = {}
    for name in THRESHOLDS:
        command = [sys.executable, "-m", "tests.benchmarks.select_peers", "threshold", name, str(num_rows)]
        runs = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                for _ in range(repeats)]  # fmt: skip
        found[name] = {**runs[0], "s": round(median(run["s"] for run in runs), 3)}
        if found[name]["threshold"] != found["ours"]["threshold"]:
            raise RuntimeError(f"{name} finds another threshold than ours of {num_rows:,}")
        print(f"{num_rows:>13,} scores  {name:7} {found[name]['s']:8.3f} s  peak {found[name]['peak_mib']:,.0f} MiB, "
              f"{found[name]['scores_mib']:,.0f} MiB before", flush=True)  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="alignpot select beside scripts of polars and duckdb.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most-rows", type=float, default=6e5)
    parser.add_argument("--scores", type=float, default=1e8, help="scores of the threshold alone; 0 leaves it out")
    parser.add_argument("--folder", help="the scored datasets are kept there and used again")
    arguments = parser.parse_args()
    summary: dict[str, object] = {"machine": machine()}
    print(summary["machine"])
    with tempfile.TemporaryDirectory(prefix="alignpot-select-") as temporary:
        folder = Path(arguments.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for num_rows, layouts in SIZES.items():
            for num_files in layouts if num_rows <= arguments.most_rows else ():
                summary[f"{num_rows}x{num_files}"] = compare_commands(folder, num_rows, num_files, arguments.repeats)
    if arguments.scores:
        summary["threshold"] = compare_thresholds(int(arguments.scores), arguments.repeats)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
