"""Selection from many rows in many parts on S3: threads, Ray tasks and a computation by hand keep the same rows.

ALIGNPOT_SCALE_ROWS makes it larger; 10,000,000 rows take some 1.5 GB of disk.
"""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema as names
from pipeline.data.manifest import SCORED
from pipeline.data.parts import commit_part
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run
from tests.data.tables import spec_of
from tests.fixtures_storage import S3Server
from tests.steps import scored_data as data

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(3600)]

WATCHED = """
import atexit, pathlib, sys
from pipeline.cli import main
# Not ru_maxrss, which begins with the memory of the process that forked this one.
atexit.register(lambda: print(pathlib.Path("/proc/self/status").read_text()))
main(sys.argv[1:])
"""
ROWS = int(os.environ.get("ALIGNPOT_SCALE_ROWS", "100000"))
NUM_PARTS = 64
QUOTAS = {"math": 3.0, "code": 1.0}
SWEEP = [
    {"name": "best"},
    {"name": "quotas", "select": {"fraction": 0.1, "group_by": data.TOPIC, "quotas": QUOTAS}},
]
MOST_BYTES = {"plain": 2 * 2**30, "ray": 1 * 2**30}


def turns(role: str, contents: pa.Array) -> pa.Array:
    """One turn a row."""
    roles = pa.array(np.full(len(contents), role))
    struct = pa.StructArray.from_arrays([roles, contents], fields=list(names.MESSAGE))
    return pa.ListArray.from_arrays(pa.array(np.arange(len(contents) + 1, dtype=np.int32)), struct)


def part_of(first: int, num_rows: int) -> tuple[pa.Table, np.ndarray]:
    """A part, its prompts being the row numbers, and the margins and group of its rows, [3, num_rows]."""
    chance = np.random.default_rng(first)
    numbers = pa.array(np.arange(first, first + num_rows)).cast(pa.string())
    explicit, logps = chance.normal(0.7, 1.0, num_rows), -chance.gamma(40.0, 2.0, (4, num_rows))
    group = chance.choice(3, num_rows, p=[0.5, 0.3, 0.2])
    columns = {
        names.ID: numbers,
        names.CONTENT_DIGEST: numbers,
        names.PROMPT: turns("user", numbers),
        names.CHOSEN: turns("assistant", pa.array(np.full(num_rows, "yes"))),
        names.REJECTED: turns("assistant", pa.array(np.full(num_rows, "no"))),
        names.REWARD_CHOSEN: pa.array(explicit),
        names.REWARD_REJECTED: pa.array(np.zeros(num_rows)),
        names.POLICY_LOGP_CHOSEN: pa.array(logps[0]),
        names.POLICY_LOGP_REJECTED: pa.array(logps[1]),
        names.REFERENCE_LOGP_CHOSEN: pa.array(logps[2]),
        names.REFERENCE_LOGP_REJECTED: pa.array(logps[3]),
        names.NUM_TOKENS_PROMPT: pa.array(np.full(num_rows, 1)),
        names.NUM_TOKENS_CHOSEN: pa.array(np.full(num_rows, 1)),
        names.NUM_TOKENS_REJECTED: pa.array(np.full(num_rows, 1)),
        names.STATUS: pa.array(np.full(num_rows, names.KEPT)),
        data.TOPIC: pa.array(np.array(["math", "code", "chat"])[group]),
    }
    own = [columns.get(field.name, pa.nulls(num_rows, field.type)) for field in data.SCHEMA]
    implicit = np.abs(0.1 * ((logps[0] - logps[2]) - (logps[1] - logps[3])))
    return pa.Table.from_arrays(own, schema=data.SCHEMA), np.stack([explicit, implicit, group])


@pytest.fixture(scope="module")
def big(s3: S3Server) -> tuple[str, np.ndarray]:
    """The dataset on S3, and explicit margin, implicit margin and group of each row."""
    url = s3.url("big")
    place = Place.open(url, s3.storage)
    cuts = np.linspace(0, ROWS, NUM_PARTS + 1).astype(int).tolist()
    sizes = np.diff(cuts).tolist()
    run = Run.claim(place, Plan(
        kind=SCORED,
        fingerprint=data.FINGERPRINT,
        shards=tuple({"file": "made", "start": start, "num_rows": n} for start, n in zip(cuts, sizes, strict=False)),
        schema=data.SCHEMA,
        config=data.SCORE_CONFIG,
        version="0.0.0",
        source_format="messages",
    ))  # fmt: skip
    margins = np.empty((3, ROWS))
    for index, (start, num_rows) in enumerate(zip(cuts, sizes, strict=False)):
        table, margins[:, start : start + num_rows] = part_of(start, num_rows)
        commit_part(place, spec_of(run.plan, index), table)
    run.finish({})
    return url, margins


def select(engine: str, scored: str, s3: S3Server, folder: Path) -> str:
    """`alignpot select` in a process of its own; prints what it took."""
    output = s3.url(engine)
    given = {"select": {"engine": engine}, "sweep": SWEEP, "output": {
        "formats": ["parquet"], "slim": True, "rows_per_file": max(1000, ROWS // 50)}}  # fmt: skip
    path = data.write_config(folder / f"{engine}.yaml", data.sections(scored, output, s3.storage, **given))
    start = time.monotonic()
    log = folder / f"{engine}.log"
    with log.open("wb") as out:
        done = subprocess.run([sys.executable, "-c", WATCHED, "select", str(path)], stdout=out, stderr=out, check=False)
    assert done.returncode == 0, log.read_text()[-3000:]
    peak_kib = int(log.read_text().rpartition("VmHWM:")[2].split()[0])
    print(f"\n{engine}: {ROWS:,} rows, {time.monotonic() - start:.1f} s, peak {peak_kib / 2**10:.0f} MiB")
    assert peak_kib * 2**10 < MOST_BYTES[engine]
    return output


def kept_rows(url: str, s3: S3Server) -> np.ndarray:
    """Row numbers of a slim subset, in the order they were written."""
    place = Place.open(url, s3.storage)
    numbers = []
    for path in sorted(place.fs.find(f"{place.root}/parquet")):
        prompts = pq.read_table(place.fs.open(path), columns=[names.PROMPT])[names.PROMPT].combine_chunks()
        numbers.append(prompts.flatten().field("content").cast(pa.int64()).to_numpy())
    return np.concatenate(numbers)


def test_threads_ray_and_numpy_keep_the_same_rows(big: tuple[str, np.ndarray], s3: S3Server, tmp_path: Path):
    scored, (explicit, implicit, group) = big
    scores = data.zscores(explicit) - data.zscores(implicit)
    best = np.sort(np.argpartition(-scores, math.floor(0.4 * ROWS))[: math.floor(0.4 * ROWS)])
    k = math.floor(0.1 * ROWS)
    by_group = [(np.flatnonzero(group == 0), k * 3 // 4), (np.flatnonzero(group == 1), k - k * 3 // 4)]
    quotas = np.sort(np.concatenate([rows[np.argsort(-scores[rows])[:quota]] for rows, quota in by_group]))
    digests = set()
    for engine in ("plain", "ray"):
        output = select(engine, scored, s3, tmp_path)
        assert np.array_equal(kept_rows(f"{output}/best", s3), best)
        assert np.array_equal(kept_rows(f"{output}/quotas", s3), quotas)
        reports = [data.read_json(f"{output}/{name}", "report.json", s3.storage) for name in ("best", "quotas")]
        digests.add(tuple(report["selection"]["id_digest"] for report in reports))
    assert len(digests) == 1
