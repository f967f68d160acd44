"""What a run survives: kill -9 of the whole process group, a worker that dies, two drivers at once."""

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from pipeline.config import Config, load_config, resolved
from pipeline.errors import AlignpotError, IntegrityError, ModelError, TemporaryError
from pipeline.steps.score import prepare_score, score
from pipeline.steps.work import Stage
from tests.steps.commands import finish, kill_everything, start, started_until
from tests.steps.conftest import make_config, run_all, write_jsonl
from tests.steps.test_score import scores_of, selected_ids

# Killing Ray and starting it anew takes minutes where another test has the other core.
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(2400)]

NUM_KILLS = 2


@pytest.fixture
def models(tiny_model_dir: Callable[..., Path], tiny_reward_dir: Path) -> dict:
    return {
        "policy": {"model": str(tiny_model_dir("llama", seed=1)), "dtype": "float32", "num_cpus": 0.5},
        "reward": {
            "backend": "classifier",
            "model": str(tiny_reward_dir),
            "dtype": "float32",
            "num_cpus": 0.5,
        },
    }


def written(config: Config, path: Path) -> Path:
    path.write_text(yaml.safe_dump(resolved(config)))
    return path


def finish_in_plain_loop(config: Config, path: Path) -> None:
    """Go on where a run stopped, without Ray: whoever goes on finds the same parts."""
    plain = config.model_copy(update={"run": config.run.model_copy(update={"engine": "plain"})})
    finish("run", written(plain, path))


def num_parts(config: Config) -> int:
    return len(list((Path(config.scored) / "parts").glob("*.parquet"))) if Path(config.scored).exists() else 0


@pytest.mark.soak
def test_run_killed_twice_ends_as_if_it_had_not_been(tmp_path: Path, pairs: list[dict], models: dict):
    rows = [{**pair, "id": f"{pair['id']}-{copy}"} for copy in range(4) for pair in pairs]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    whole = make_config(tmp_path / "whole", source, source={"id_column": "id"}, **models)
    run_all(whole)

    run = {"engine": "ray", "shard_rows": 4, "placement": "colocated"}
    config = make_config(tmp_path / "killed", source, source={"id_column": "id"}, **models, run=run)
    path = written(config, tmp_path / "killed.yaml")
    parts_after_kill = [0]
    for _ in range(NUM_KILLS):
        before = parts_after_kill[-1]
        kill_everything(started_until("run", path, lambda: num_parts(config) > before + 2))  # noqa: B023
        parts_after_kill.append(num_parts(config))
        assert not (Path(config.scored) / "_SUCCESS.json").exists()
    assert 0 < parts_after_kill[1] < parts_after_kill[2] < len(rows) // 4

    finish_in_plain_loop(config, tmp_path / "plain.yaml")
    assert "Loading weights" not in path.with_suffix(".log").read_text(), "bars of workers in the log"
    assert scores_of(config).equals(scores_of(whole))
    assert selected_ids(config) == selected_ids(whole)
    visible = [p.name for p in (Path(config.scored) / "parts").iterdir() if not p.name.startswith(".")]
    assert sorted(visible) == [f"{index:08d}.parquet" for index in range(len(rows) // 4)]


def test_two_drivers_on_one_output_write_each_row_once(tmp_path: Path, pairs: list[dict], models: dict):
    pairs = pairs[:24]
    config = make_config(
        tmp_path,
        write_jsonl(tmp_path / "pairs.jsonl", pairs),
        **models,
        run={"engine": "plain", "shard_rows": 2},
    )
    drivers = [start("run", written(config, tmp_path / f"driver{i}.yaml")) for i in range(2)]
    assert [driver.wait(timeout=600) for driver in drivers] == [0, 0]
    manifest = json.loads((Path(config.scored) / "_SUCCESS.json").read_text())
    assert manifest["num_rows"] == len(pairs)
    ids = scores_of(load_config(tmp_path / "driver0.yaml"))["id"].to_pylist()
    assert len(ids) == len(set(ids)) == len(pairs)


class Deadly:
    """A stage whose process is killed by some rows, as by those that crash a kernel; or hangs on them."""

    def __init__(self, marks: Path, rows: set[int], num_deaths: int, *, hang: bool = False) -> None:
        self.marks = marks
        self.rows = rows
        self.num_deaths = num_deaths
        self.hang = hang

    def __call__(self, table: pa.Table) -> pa.Table:
        todo = table.filter(pc.equal(table["status"], "kept"))["source_row"].to_pylist()
        if self.rows & {*todo} and len(list(self.marks.iterdir())) < self.num_deaths:
            (self.marks / f"{time.time_ns()}").touch()
            if self.hang:
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        return table


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("rows", "num_deaths", "most_deaths", "hang", "many_blocks"),
    [
        pytest.param({4, 5}, 1, 1, False, 1024, id="dies once"),
        pytest.param({6, 7, 13}, 10**6, 7, False, 1024, id="dies on rows of two shards", marks=pytest.mark.soak),
        pytest.param({2, 6, 7}, 10**6, 7, False, 2, id="dies on rows of a block of two", marks=pytest.mark.soak),
        pytest.param({6}, 10**6, 3, True, 1024, id="hangs", marks=pytest.mark.soak),
    ],
)
def test_worker_that_dies_is_replaced_and_the_row_that_kills_it_dropped(
    rows: set[int],
    num_deaths: int,
    most_deaths: int,
    hang: bool,
    many_blocks: int,
    tmp_path: Path,
    pairs: list[dict],
    monkeypatch: pytest.MonkeyPatch,
):
    marks = tmp_path / "deaths"
    marks.mkdir()
    monkeypatch.setattr("pipeline.on_ray.engine._MANY_BLOCKS", many_blocks)
    deadly = Stage(name="policy", build=partial(Deadly, marks, rows, num_deaths, hang=hang))
    monkeypatch.setattr("pipeline.steps.score.score_stages", lambda config: [deadly])
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:20])
    run = {"engine": "ray", "shard_rows": 4, "stage_timeout_s": 2.0 if hang else 60.0, "max_dropped": 1.0}
    _, manifest = score(*prepare_score(make_config(tmp_path, source, metric={"name": "random"}, run=run)))
    dropped = 0 if num_deaths == 1 else len(rows)
    assert (manifest.num_kept, manifest.num_dropped) == (20 - dropped, dropped)
    assert manifest.drops_by_reason == ({"policy: killed_worker": dropped} if dropped else {})
    assert len(list(marks.iterdir())) <= most_deaths


class DiesAtOnce:
    """A stage whose process dies when it is built, as one whose model does not fit into memory: so often, or always."""

    def __init__(self, marks: Path, num_deaths: int) -> None:
        if len(list(marks.iterdir())) < num_deaths:
            (marks / f"{time.time_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


@pytest.mark.soak
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("num_deaths", [1, 10**6], ids=["once", "always"])
def test_worker_that_dies_while_it_is_built_is_tried_again_but_not_for_ever(
    num_deaths: int, tmp_path: Path, pairs: list[dict], monkeypatch: pytest.MonkeyPatch
):
    marks = tmp_path / "deaths"
    marks.mkdir()
    deadly = Stage(name="policy", build=partial(DiesAtOnce, marks, num_deaths))
    monkeypatch.setattr("pipeline.steps.score.score_stages", lambda config: [deadly])
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:8])
    config = make_config(tmp_path, source, metric={"name": "random"}, run={"engine": "ray", "shard_rows": 4})
    if num_deaths == 1:
        assert score(*prepare_score(config))[1].num_kept == 8
        return
    with pytest.raises(AlignpotError, match="died each time") as error:
        score(*prepare_score(config))
    assert error.value.exit_code == 1
    assert len(list(marks.iterdir())) <= 25
    assert not (Path(config.scored) / "_SUCCESS.json").exists()


class Refuses:
    """A stage that cannot be built, or cannot be applied, for a reason of ours."""

    def __init__(self, error: AlignpotError, *, at_once: bool) -> None:
        self.error = error
        if at_once:
            raise error

    def __call__(self, table: pa.Table) -> pa.Table:
        raise self.error


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("error", "at_once"),
    [(ModelError("two logits"), True), (TemporaryError("slow down"), False)],
    ids=["model-build", "temporary-apply"],
)
def test_error_of_a_worker_keeps_its_class_and_words(
    error: AlignpotError, at_once: bool, tmp_path: Path, pairs: list[dict], monkeypatch: pytest.MonkeyPatch
):
    refuses = Stage(name="tokenise", build=partial(Refuses, error, at_once=at_once))
    monkeypatch.setattr("pipeline.steps.score.score_stages", lambda config: [refuses])
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:8])
    config = make_config(tmp_path, source, metric={"name": "random"}, run={"engine": "ray", "shard_rows": 4})
    with pytest.raises(type(error)) as raised:
        score(*prepare_score(config))
    assert (type(raised.value), str(raised.value)) == (type(error), str(error))


def test_source_replaced_in_mid_run_is_noticed(tmp_path: Path, pairs: list[dict]):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    run = prepare_score(make_config(tmp_path, source, metric={"name": "random"}))
    write_jsonl(source, pairs[::-1])
    with pytest.raises(IntegrityError, match=r"pairs\.jsonl"):
        score(*run)
    assert not (tmp_path / "scored" / "_SUCCESS.json").exists()


@pytest.mark.parametrize("engine", ["plain", pytest.param("ray", marks=pytest.mark.soak)])
def test_sigterm_ends_with_75_and_the_run_goes_on(engine: str, tmp_path: Path, pairs: list[dict], models: dict):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    config = make_config(tmp_path, source, **models, run={"engine": engine, "shard_rows": 1, "placement": "colocated"})
    path = written(config, tmp_path / "config.yaml")
    process = started_until("run", path, lambda: num_parts(config) >= 3)
    process.terminate()
    assert process.wait(timeout=180) == 75, path.with_suffix(".log").read_text()[-3000:]
    assert num_parts(config) < len(pairs)
    finish_in_plain_loop(config, tmp_path / "plain.yaml")
    assert scores_of(config).num_rows == len(pairs)
