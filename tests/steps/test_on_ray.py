"""How shards go through a local Ray: as many of them in the making as this machine has cores for."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import Run
from pipeline.on_ray.engine import run_on_ray
from pipeline.steps.work import Apply, Stage
from tests.steps.kept import Keep

NUM_SHARDS = 10


@dataclass(frozen=True)
class Numbered:
    index: int
    file: str = "rows"


@dataclass(frozen=True)
class Times:
    """Keeps when something began and ended, in whatever process it ran."""

    folder: Path

    def take(self, what: str, index: int) -> None:
        begun = time.time()
        time.sleep(1.0)
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
def test_a_ray_of_our_own_reads_and_commits_no_more_shards_at_once_than_there_are_cores(tmp_path: Path):
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
