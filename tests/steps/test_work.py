"""The plain loop: what its stages hold open is closed, however it ends; models that take turns."""

import gc
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from safetensors import safe_open

from pipeline.config import Config, TorchModel, resolved
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import ModelError
from pipeline.steps.score import prepare_score, score
from pipeline.steps.work import ShardWork, Stage, batches, in_turn, run_plain
from tests.steps.commands import finish, kill_everything, started_until
from tests.steps.conftest import make_config, write_jsonl

ROLES = {"policy": 1, "reference": 2}
IN_TURN = {"placement": "in_turn", "turn_shards": 2}


class Engine:
    """A stage that holds something open."""

    def __init__(self) -> None:
        self.is_open = True

    def __call__(self, table: pa.Table) -> pa.Table:
        return table

    def close(self) -> None:
        self.is_open = False


def test_stages_are_closed_when_a_later_one_cannot_be_built():
    engine = Engine()

    def fail():
        raise ModelError("no such model")

    stages = [Stage(name="policy", build=lambda: engine), Stage(name="reference", build=fail)]
    with pytest.raises(ModelError):
        list(run_plain(None, [], stages, None))
    assert not engine.is_open


@pytest.fixture(scope="module")
def models(tiny_model_dir: Callable[..., Path], tiny_reward_dir: Path) -> dict:
    sections = {role: {"model": str(tiny_model_dir("llama", seed=seed))} for role, seed in ROLES.items()}
    reward = {"backend": "classifier", "model": str(tiny_reward_dir)}
    named = {**sections, "reward": reward}
    return {"objective": {"name": "dpo"}, **{name: {**each, "dtype": "float32"} for name, each in named.items()}}


class Loads(logging.Handler):
    """Of each model that a turn loaded: its stage, and the parameters that were alive then."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if " loaded in " in record.getMessage():
            self.found.append((record.getMessage().partition(":")[0], num_alive()))


def num_alive() -> int:
    return sum(each.numel() for each in gc.get_objects() if type(each) is torch.nn.Parameter)


def scores_of(config: Config) -> pa.Table:
    return Dataset.open(Place.open(config.scored, config.storage)).table(None, kept_only=False).sort_by("id")


@pytest.mark.slow
def test_models_in_turn_score_as_models_at_once_one_loaded_at_a_time_once_a_batch(tmp_path, pairs, models, caplog):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:12])
    at_once = make_config(tmp_path / "at-once", source, **models, run={"shard_rows": 4})
    score(*prepare_score(at_once))
    gc.collect()
    before, loads = num_alive(), Loads()
    logging.getLogger("pipeline.steps.work").addHandler(loads)
    caplog.set_level(logging.INFO)
    try:
        in_turn = make_config(tmp_path, source, **models, run={"shard_rows": 4, **IN_TURN})
        score(*prepare_score(in_turn))
    finally:
        logging.getLogger("pipeline.steps.work").removeHandler(loads)
    assert scores_of(in_turn).equals(scores_of(at_once))
    # Three shards are batches of two and of one.
    assert [stage for stage, _ in loads.found] == ["reward", "policy", "reference"] * 2
    sizes = {
        name: sum(math.prod(shape) for shape in shapes_of(Path(models[name]["model"])))
        for name in ("reward", "policy", "reference")
    }
    assert [alive - before for _, alive in loads.found] == [sizes[stage] for stage, _ in loads.found]
    assert num_alive() == before


def shapes_of(directory: Path) -> list[list[int]]:
    with safe_open(directory / "model.safetensors", framework="np") as file:
        return [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - no mapping


@pytest.mark.slow
def test_a_kill_between_turns_loses_the_batch_and_nothing_else(tmp_path, pairs, models):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:20])
    run = {"shard_rows": 2, **IN_TURN}
    path = tmp_path / "config.yaml"
    config = make_config(tmp_path, source, **models, run=run)
    path.write_text(yaml.safe_dump(resolved(config)))
    parts = tmp_path / "scored/parts"
    kill_everything(started_until("score", path, lambda: len([*parts.glob("*.parquet")]) >= 4))
    there = {part: part.stat().st_mtime_ns for part in parts.glob("*.parquet")}
    assert 4 <= len(there) < 10
    assert {part.stem for part in there} == {f"{index:08d}" for index in range(len(there))}
    finish("score", path)
    assert there.items() <= {part: part.stat().st_mtime_ns for part in parts.glob("*.parquet")}.items()
    at_once = make_config(tmp_path / "at-once", source, **models, run={"shard_rows": 60})
    score(*prepare_score(at_once))
    numbers = [name for name in scores_of(config).column_names if "source" not in name]
    assert scores_of(config).select(numbers).equals(scores_of(at_once).select(numbers))


def test_a_batch_ends_at_its_number_of_shards_or_bytes(monkeypatch):
    monkeypatch.setattr("pipeline.steps.work._BATCH_BYTES", 100)
    sizes = [1, 1, 1, 1, 20, 1, 1]  # numbers of 8 bytes
    works = [ShardWork(shard=i, table=pa.table({"n": [0] * size})) for i, size in enumerate(sizes)]
    assert [[work.shard for work in batch] for batch in batches(works, 3)] == [[0, 1, 2], [3, 4], [5, 6]]


def test_a_failure_in_its_turn_frees_the_model_and_ends_the_run():
    class Failing(Engine):
        def __call__(self, table: pa.Table) -> pa.Table:
            raise ModelError(f"no number for {table.num_rows} rows")

    sound, failing = Engine(), Failing()
    model = TorchModel(model="m")
    stages = [
        Stage(name="policy", build=lambda: sound, model=model),
        Stage(name="reference", build=lambda: failing, model=model),
    ]
    with pytest.raises(ModelError):
        list(in_turn([ShardWork(shard=0, table=pa.table({"id": ["a"]}))], stages))
    assert not sound.is_open
    assert not failing.is_open
