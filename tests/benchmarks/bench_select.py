"""Exact selection beside other engines, and beside merely reading: `python -m tests.benchmarks.bench_select`.

From memory: two float64 margins a row, the best 40% by z(explicit) - z(|implicit|), each engine in a process of its
own, one after another. Before anything is timed all engines must give the same rows, and so must every timed run. From
Parquet, as pyarrow writes it by default: our selection against the fastest way pyarrow has of reading the two columns.
Figures are medians over the repeats. The last line is a JSON object.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from tests.benchmarks.select_files import WAYS
from tests.benchmarks.select_peers import ENGINES

GATE_ROWS = 1_000_000
SLOW_TO_TABULATE = 100_000_000
"""Beyond this many rows the table by size leaves out all engines but ours."""


def run(module: str, *arguments: object) -> dict:
    """The JSON object that a module of the benchmark prints last, run in a fresh process."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    return {**figures, "median_s": median(figures["seconds"])}


def show(num_rows: int, name: str, figures: dict) -> None:
    """One line of the table."""
    seconds, peak = figures["median_s"], figures["peak_mib"]
    print(
        f"{num_rows:>13,}  {name:20} {seconds:9.3f} s {num_rows / seconds / 1e6:8.1f} Mrow/s {peak:7,} MiB", flush=True
    )


def engines_at(num_rows: int, repeats: int, names: list[str]) -> dict[str, dict]:
    """All engines on the same rows; refused where one gives another set of rows."""
    found: dict[str, dict] = {}
    for name in names:
        found[name] = figures = run("select_peers", name, num_rows, repeats)
        if figures["digest"] != found[names[0]]["digest"]:
            raise RuntimeError(f"{name} does not select the same rows as {names[0]} of {num_rows:,}")
        rate = num_rows / figures["median_s"] / 1e6
        print(
            f"{num_rows:>13,}  {name:20} {figures['median_s']:9.3f} s {rate:8.1f} Mrow/s {figures['peak_mib']:7,} MiB"
        )
        sys.stdout.flush()
    return found


def from_parquet(folder: Path, num_rows: int, repeats: int) -> dict[str, dict]:
    """Every way of reading, and ours."""
    found = {}
    for way in WAYS:
        found[way] = figures = run("select_files", way, folder, num_rows, repeats)
        show(num_rows, way, figures)
    return found


def parquet_ratio(folder: Path, num_rows: int, repeats: int) -> dict[str, float]:
    """Our time over the fastest reading, and our memory."""
    found = from_parquet(folder, num_rows, repeats)
    fastest = min(figures["median_s"] for way, figures in found.items() if way != "ours")
    return {
        "rows": num_rows,
        "select_s": round(found["ours"]["median_s"], 3),
        "fastest_read_s": round(fastest, 3),
        "ratio": round(found["ours"]["median_s"] / fastest, 2),
        "peak_mib": found["ours"]["peak_mib"],
    }


def machine() -> str:
    """Processor, cores and load, for figures mean nothing without."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Exact selection beside other engines.")
    parser.add_argument("--rows", type=float, default=1e8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", default="1e6,1e7", help="further sizes from memory, for the table by size")
    parser.add_argument("--parquet-dir", help="kept and used again; a temporary folder otherwise")
    parser.add_argument("--billion", action="store_true", help="also 1e9 rows from Parquet, some 17 GB on disk")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--skip-parquet", action="store_true")
    arguments = parser.parse_args()
    num_rows, names = int(arguments.rows), list(ENGINES)
    summary: dict = {"machine": machine(), "rows": num_rows}
    print(summary["machine"])
    if not arguments.skip_memory:
        engines_at(min(GATE_ROWS, num_rows), 1, names)
        by_size = {}
        for size in sorted({int(float(size)) for size in arguments.sizes.split(",") if size} | {num_rows}):
            compared = names if size <= max(num_rows, SLOW_TO_TABULATE) else names[:1]
            by_size[size] = engines_at(size, arguments.repeats, compared)
        ours = {size: found["ours"]["median_s"] for size, found in by_size.items()}
        times = {name: by_size[num_rows][name]["median_s"] / ours[num_rows] for name in names[1:]}
        summary["times_faster"] = {name: round(ratio, 2) for name, ratio in times.items()}
        summary["mrow_s_by_rows"] = {size: round(size / seconds / 1e6, 1) for size, seconds in ours.items()}
    if not arguments.skip_parquet:
        with tempfile.TemporaryDirectory(prefix="alignpot-select-") as temporary:
            folder = Path(arguments.parquet_dir or temporary)
            summary["parquet"] = parquet_ratio(folder, num_rows, arguments.repeats)
            if arguments.billion:
                summary["parquet_billion"] = parquet_ratio(folder, 10**9, 1)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
