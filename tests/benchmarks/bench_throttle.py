"""What faults of an object store cost a whole run: `python -m tests.benchmarks.bench_throttle [--repeats 2]`.

`alignpot run` with the plain loop over 2,000 rows that carry their scores, in 40 shards; source, scored dataset and
subset lie on a SeaweedFS behind a proxy that fails a share of the requests, seeded. Every run is a process of its own
with an output of its own. Wall times are of the whole command, ratios to the mean of the undisturbed runs; a first run
is not counted. Gate: every run that ends with 0 selects the same rows; one may end with 75, which asks for the same
command again.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import yaml

from pipeline.data.place import Place
from tests.benchmarks.bench_memory import ROOT, write_source
from tests.benchmarks.scoring_data import machine
from tests.data.fault_proxy import BROKEN, BUSY, RESET, TRUNCATED, faulty
from tests.fixtures_storage import S3Server, s3_server

NUM_ROWS, SHARD_ROWS = 2000, 50
DEADLINE_S = 1200
CASES: list[tuple[str, float]] = [
    ("none", 0), (BUSY, 0.05), (BUSY, 0.2), (BUSY, 0.5), (BROKEN, 0.2), (RESET, 0.1), (TRUNCATED, 0.2)
]  # fmt: skip


@dataclass
class Sometimes:
    """Answers the proxy with `fault` for a share of the requests, and counts them."""

    fault: str
    share: float
    seed: int
    num_requests: int = 0
    num_faults: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def __call__(self, method: str, path: str) -> str | None:
        with self._lock:
            self.num_requests += 1
            fails = self._chance.random() < self.share and (self.fault != TRUNCATED or method == "GET")
            self.num_faults += fails
        return self.fault if fails else None


def config_of(s3: S3Server, endpoint_url: str, source: str) -> dict:
    return {
        "storage": {"endpoint_url": endpoint_url, "region": "us-east-1"},
        "source": {"path": source},
        "policy": {"backend": "columns"},
        "reward": {"backend": "columns"},
        "scored": s3.url("scored"),
        "select": {"fraction": 0.4, "engine": "plain"},
        "output": {"path": s3.url("subset")},
        "run": {"engine": "plain", "shard_rows": SHARD_ROWS},
    }


def subset_digest(s3: S3Server, url: str) -> str:
    """Of all rows files of a subset."""
    place = Place.open(url, s3.storage)
    found = {
        path.removeprefix(place.root): place.fs.cat_file(path)
        for path in place.fs.find(place.root)
        if not path.endswith(".json")
    }
    return hashlib.sha256(b"".join(name.encode() + found[name] for name in sorted(found))).hexdigest()


def run(workdir: Path, s3: S3Server, source: str, chance: Sometimes) -> tuple[int, float, str]:
    """Exit code, wall seconds and digest of the subset."""
    with faulty(s3.endpoint_url, chance) as endpoint_url:
        config = config_of(s3, endpoint_url, source)
        path = workdir / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        started = time.perf_counter()
        command = [sys.executable, "-m", "pipeline.cli", "run", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
        seconds = time.perf_counter() - started
    if done.returncode not in (0, 75):
        raise RuntimeError(done.stderr[-3000:])
    return done.returncode, seconds, subset_digest(s3, config["output"]["path"]) if done.returncode == 0 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="names of faults beside none")
    options = parser.parse_args()
    print(machine(), f"load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="alignpot-throttle-") as folder, s3_server(Path(folder)) as s3:
        local, source = write_source(Path(folder) / "source", NUM_ROWS), s3.url("source")
        place = Place.open(source, s3.storage)
        for file in local.iterdir():
            place.fs.pipe_file(f"{place.root}/{file.name}", file.read_bytes())
        run(Path(folder), s3, source, Sometimes("none", 0, 0))
        undisturbed, wanted = 0.0, ""
        print("| fault | share of requests | seconds | ratio | requests | faults | exit codes |\n" + "|---" * 7 + "|")
        for fault, share in CASES:
            if options.only and fault not in ("none", *options.only):
                continue
            chances = [Sometimes(fault, share, seed) for seed in range(options.repeats)]
            ended = [run(Path(folder), s3, source, chance) for chance in chances]
            codes, times, digests = zip(*ended, strict=True)
            undisturbed, wanted = undisturbed or mean(times), wanted or digests[0]
            assert {*digests} <= {wanted, ""}, "other rows"
            cells = [
                fault, f"{share:.0%}", ", ".join(f"{each:.1f}" for each in times),
                ", ".join(f"{each / undisturbed:.2f}" for each in times),
                ", ".join(str(each.num_requests) for each in chances),
                ", ".join(str(each.num_faults) for each in chances), ", ".join(map(str, codes)),
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
