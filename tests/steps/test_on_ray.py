"""How shards go through a local Ray: as many of them in the making as this machine has cores for."""

import json
import os
import re
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from pipeline.config import Run
from pipeline.data.parts import PartSummary
from pipeline.on_ray.engine import in_blocks, run_on_ray
from pipeline.on_ray.metrics import exported_names
from pipeline.steps.work import Apply, Stage
from tests.steps.kept import Keep

NUM_SHARDS = 8


@dataclass(frozen=True)
class Numbered:
    index: int
    num_rows: int = 1
    file: str = "rows"


@dataclass(frozen=True)
class Times:
    """Keeps when something began and ended, in whatever process it ran."""

    folder: Path

    def take(self, what: str, index: int) -> None:
        begun = time.time()
        time.sleep(0.5)
        (self.folder / f"{what}-{index}").write_text(f"{begun} {time.time()}")

    def most_at_once(self, what: str) -> int:
        spans = [tuple(map(float, path.read_text().split())) for path in self.folder.glob(f"{what}-*")]
        assert len(spans) == NUM_SHARDS
        return max(sum(begun <= moment < ended for begun, ended in spans) for moment, _ in spans)


@dataclass(frozen=True)
class SlowReader:
    times: Times

    def read(self, shard: Numbered) -> pa.Table:
        self.times.take("read", shard.index)
        return pa.table({"row": [shard.index]})


@dataclass(frozen=True)
class SlowCommit:
    times: Times
    keep: Keep

    def __call__(self, index: int, table: pa.Table) -> pa.Table:
        self.times.take("commit", index)
        return self.keep(index, table)


def leave_as_it_is() -> Apply:
    return lambda table: table


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("many_blocks", [1024, NUM_SHARDS // 2], ids=["a_block_each", "two_in_a_block"])
def test_a_ray_of_our_own_reads_and_commits_no_more_shards_at_once_than_there_are_cores(
    many_blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.on_ray.engine._MANY_BLOCKS", many_blocks)
    times, keep = Times(tmp_path / "times"), Keep(tmp_path / "parts")
    times.folder.mkdir()
    keep.folder.mkdir()
    stages = (Stage(name="tokenise", build=leave_as_it_is),)
    shards = [Numbered(index) for index in range(NUM_SHARDS)]
    done = [work.shard for work in run_on_ray(SlowReader(times), shards, stages, SlowCommit(times, keep), Run())]
    assert sorted(done) == list(range(NUM_SHARDS))
    assert keep.whole().column("row").to_pylist() == list(range(NUM_SHARDS))
    cores = max(2, os.cpu_count() or 1)
    assert times.most_at_once("read") <= cores
    assert times.most_at_once("commit") <= cores


@pytest.mark.parametrize(
    ("num_shards", "num_rows", "blocks", "most"),
    [(2047, 1, 2047, 1), (2048, 1, 1024, 2), (16384, 1, 1024, 16), (16384, 100, 8192, 2), (16384, 129, 16384, 1)],
)
def test_very_many_small_shards_travel_together(num_shards: int, num_rows: int, blocks: int, most: int):
    shards = [Numbered(index, num_rows) for index in range(num_shards)]
    packed = in_blocks(shards)
    assert (len(packed), max(map(len, packed))) == (blocks, most)
    assert [shard for block in packed for shard in block] == shards


OUR_DROP = "of_this_test/source"
"""Reason and stage. No other run on the same Ray drops for it."""


class Reader:
    def read(self, shard: Numbered) -> pa.Table:
        return pa.table({"row": [shard.index]})


def commit_four(index: int, table: pa.Table) -> pa.Table:
    summary = PartSummary(
        index=index,
        num_rows=4,
        num_kept=3,
        num_dropped=1,
        drops={"source": {"of_this_test": 1}},
        num_tokens={"num_tokens_prompt": 7},
        id_digest="",
        fingerprint_digest="",
        source_digest=None,
        size=0,
        footer_digest="",
    )
    return pa.table({"summary": [json.dumps(asdict(summary))]})


def exported(port: int) -> dict[str, dict[str, float]]:
    """Values by name, then by the label of ours."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_alignpot")]
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        name, labels, value = re.fullmatch(r"(\w+)\{(.*)\} ([\d.e+-]+)\s*", line).groups()
        ours = [v for k, v in re.findall(r'(\w+)="([^"]*)"', labels) if k in ("outcome", "reason", "column", "stage")]
        found.setdefault(name, {})["/".join(ours)] = float(value)
    return found


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_prometheus_finds_the_numbers_of_a_run():
    stages = (Stage(name="tokenise", build=leave_as_it_is),)
    list(run_on_ray(Reader(), [Numbered(index) for index in range(5)], stages, commit_four, Run()))
    deadline = time.monotonic() + 60
    found: dict[str, dict[str, float]] = {}
    while time.monotonic() < deadline and OUR_DROP not in found.get("ray_alignpot_dropped_rows_total", {}):
        time.sleep(1)  # Ray exports every ten seconds; runs of other tests on this Ray may come before ours
        found = exported(ray.nodes()[0]["MetricsExportPort"])
    assert found["ray_alignpot_dropped_rows_total"][OUR_DROP] == 5
    assert found["ray_alignpot_rows_total"]["kept"] >= 15
    assert found["ray_alignpot_tokens_total"]["num_tokens_prompt"] >= 35
    assert {"read", "tokenise", "commit"} <= {*found["ray_alignpot_busy_seconds_total"]}
    assert found["ray_alignpot_workers"]["tokenise"] == 1
    # No GPU here, and no worker died.
    assert {*found} <= exported_names()
    assert exported_names() - {*found} <= {"ray_alignpot_gpu_seconds_total", "ray_alignpot_worker_restarts_total"}
