"""Candidates made on Ray equal those of a plain loop, whatever the shards, and no engine outlives its step."""

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from pipeline.config import Evolve, Generate, Run, SelfPlayConfig, TorchModel
from pipeline.on_ray.engine import run_on_ray
from pipeline.selfplay.candidates import generate_stage
from pipeline.selfplay.evolve import evolve_stage, plan_evolution
from pipeline.steps.work import Stage, run_plain
from tests.selfplay.tables import PROMPTS, prompt_table
from tests.steps.kept import Keep

TABLE = prompt_table(PROMPTS * 2)


@dataclass(frozen=True)
class Rows:
    index: int
    first: int
    last: int
    file: str = "prompts"


@dataclass(frozen=True)
class Reader:
    table: pa.Table

    def read(self, shard: Rows) -> pa.Table:
        return self.table.slice(shard.first, shard.last - shard.first)


def shards(size: int, table: pa.Table = TABLE) -> list[Rows]:
    begins = range(0, table.num_rows, size)
    return [Rows(i, begin, min(begin + size, table.num_rows)) for i, begin in enumerate(begins)]


def config_of(tmp_path: Path, policy: TorchModel, reward: Path, generate: Generate) -> SelfPlayConfig:
    return SelfPlayConfig(
        path=str(tmp_path / "play"),
        prompts={"path": str(tmp_path)},
        policy=policy,
        reward={"backend": "classifier", "model": str(reward), "dtype": "float32"},
        generate=generate,
    )


def on_ray(folder: Path, stages: list[Stage], size: int, table: pa.Table = TABLE) -> tuple[pa.Table, list[int]]:
    """The table, and the processes that were generating at some time."""
    folder.mkdir()
    seen: set[int] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            seen.update(generating())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        done = list(run_on_ray(Reader(table), shards(size, table), stages, Keep(folder), Run()))
        assert len(done) == len(shards(size, table))
    finally:
        ended.set()
        watcher.join()
    return Keep(folder).whole(), sorted(seen)


def plainly(folder: Path, stages: list[Stage], size: int, table: pa.Table = TABLE) -> pa.Table:
    folder.mkdir()
    list(run_plain(Reader(table), shards(size, table), stages, Keep(folder)))
    return Keep(folder).whole()


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.usefixtures("local_ray")
def test_new_prompts_on_ray_equal_those_of_a_plain_loop(tmp_path, tiny_model_dir, tiny_reward_dir):
    policy = TorchModel(model=str(tiny_model_dir("llama")), dtype="float32")
    generate = Generate(engine="transformers", temperature=1.5)
    config = config_of(tmp_path, policy, tiny_reward_dir, generate)
    config = config.model_copy(update={"evolve": Evolve(max_tokens=6)})
    tasks = plan_evolution(prompt_table(), config.evolve, round_=1)
    stages = [evolve_stage(config, policy)]
    found, _ = on_ray(tmp_path / "ray", stages, 4, tasks)
    assert found.equals(plainly(tmp_path / "plain", stages, 7, tasks))
    assert found.num_rows == 5 * len(PROMPTS)
    assert min(found.column("num_tokens_draft").to_pylist()) > 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("local_ray")
def test_vllm_on_ray_equals_the_plain_loop_and_leaves_no_process_behind(tmp_path, tiny_model_dir, tiny_reward_dir):
    pytest.importorskip("vllm")
    policy = TorchModel(model=str(tiny_model_dir("llama", hidden_size=128)), dtype="float32")
    generate = Generate(num_responses=3, temperature=1.5, max_tokens=6, max_prompt_tokens=64)
    stages = [generate_stage(config_of(tmp_path, policy, tiny_reward_dir, generate), policy)]
    found, seen = on_ray(tmp_path / "ray", stages, size=5)
    assert seen
    until = time.monotonic() + 30
    while (left := generating()) and time.monotonic() < until:
        time.sleep(0.5)
    assert not left
    assert found.equals(plainly(tmp_path / "plain", stages, size=5))


def generating() -> list[int]:
    """Processes of our Ray that it has named after the actor."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "GenerateActor" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found
