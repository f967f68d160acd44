"""`alignpot reward` and the call: every response gets the reward that the back end gives it, and no row is lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

import pipeline
from pipeline import read_pairs
from pipeline.cli import app
from pipeline.config import Storage, parse_reward
from pipeline.data.place import Place
from pipeline.data.verify import verify
from pipeline.errors import AlignpotError, ConfigError, FingerprintError, TooManyDroppedError
from pipeline.steps import step
from pipeline.steps.reward import prepare_reward, reward
from tests.rewards.functions import length


def section(name: str = "length", **keys: Any) -> dict[str, Any]:
    return {"backend": "function", "function": f"tests.rewards.functions:{name}", "isolate": False, **keys}


def test_each_response_gets_its_reward_and_a_row_without_any_is_dropped() -> None:
    rows = [{"prompt": "Hi", "responses": ["one", "", "three"]}, {"prompt": "Ho", "responses": ["", " "]}]
    found = pipeline.reward(rows, reward=section(), run={"max_dropped": 1.0})
    assert found.to_arrow()["all_rm_scores"].to_pylist() == [[3.0, None, 5.0]]
    assert found.dropped == {"annotate: empty_responses": 1}
    with pytest.raises(TooManyDroppedError, match="1 of 2 rows were dropped"):
        pipeline.reward(rows, reward=section())


def test_a_function_sees_the_columns_that_are_passed_through() -> None:
    rows = [{"id": f"r{i}", "prompt": "What?", "responses": ["a", "b"], "reference": "ab"[i % 2]} for i in range(4)]
    source = {"id_column": "id", "passthrough": ["reference"]}
    found = pipeline.reward(rows, reward=section("equals_reference"), source=source).to_arrow().to_pylist()
    assert {row["id"]: row["all_rm_scores"] for row in found} == {
        f"r{i}": [float(i % 2 == 0), float(i % 2)] for i in range(4)
    }


def test_a_reward_model_gives_the_rewards_that_it_gives_to_pairs(tiny_model_dir: Callable[..., Path]) -> None:
    model = {
        "backend": "classifier",
        "model": str(tiny_model_dir("llama", classifier=True, seed=3)),
        "dtype": "float32",
    }
    rows = [{"prompt": f"Question {i}?", "chosen": f"Answer {i}.", "rejected": "None"} for i in range(5)]
    pairs = pipeline.score(rows, reward=model).to_arrow()
    wanted = {row["prompt"][0]["content"]: [row["reward_chosen"], row["reward_rejected"]] for row in pairs.to_pylist()}
    answers = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]} for row in rows]
    found = pipeline.reward(answers, reward=model).to_arrow().to_pylist()
    assert {row["prompt"][0]["content"]: row["all_rm_scores"] for row in found} == wanted


def test_several_rewards_give_lists_of_their_own() -> None:
    rows = [{"prompt": "Hi", "responses": ["one", "", "three"]}]
    rewards = {"long": section(), "half": section(arguments={"per": 2.0})}
    [found] = pipeline.reward(rows, rewards=rewards).to_arrow().to_pylist()
    assert found["all_rm_scores_long"] == [3.0, None, 5.0]
    assert found["all_rm_scores_half"] == [1.5, None, 2.5]
    with pytest.raises(ConfigError, match="needs a reward section, or rewards"):
        pipeline.reward(rows)


def test_what_comes_out_is_a_source_of_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "responses": ["a", "the longest", "more"]} for i in range(3)]
    pipeline.reward(rows, reward=length, path=tmp_path / "rewarded")
    assert "complete dataset of kind rewarded" in verify(Place.open(str(tmp_path / "rewarded"), Storage()))
    pairs = pipeline.score(tmp_path / "rewarded", reward="columns").to_arrow().to_pylist()
    assert {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in pairs} == {("the longest", "a")}
    assert [row["rewards_all"] for row in pairs] == [[1.0, 11.0, 4.0]] * 3
    assert len(read_pairs(tmp_path / "rewarded")) == 3


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"source": {"path": "x", "format": "answers"}}, "leave them out"),
        ({"policy": {"model": "m"}}, "policy"),
        ({"reward": {"backend": "columns"}}, "wanted classifier"),
        ({"reward": {"backend": "classifier", "model": "m", "fp8": True}}, "fp8 is for score"),
    ],
)
def test_what_is_not_for_this_command_is_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_reward({"source": {"path": "x"}, "reward": section(), "rewarded": "y", **sections})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = [{"id": f"r{i:02}", "prompt": f"Question {i}?", "responses": ["a b", "c" * i or "d"]} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    sections = {
        "source": {"path": str(tmp_path / "rows.parquet"), "id_column": "id"},
        "reward": section(),
        "rewarded": str(tmp_path / "rewarded"),
        "run": {"engine": "plain", "shard_rows": 4},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(sections))
    return tmp_path / "config.yaml"


def table_at(config: Path) -> pa.Table:
    return pq.read_table(config.parent / "rewarded" / "parts").sort_by("id")


def test_a_run_that_stopped_goes_on_and_a_complete_one_does_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops_after_two(place: Any, specs: Any, index: int, table: Any) -> Any:
        if index == 2:
            raise AlignpotError("stopped")
        return commit(place, specs, index, table)

    commit = step.commit_to
    with monkeypatch.context() as patched:
        patched.setattr(step, "commit_to", stops_after_two)
        assert CliRunner().invoke(app, ["reward", str(config)]).exit_code == 1
    done = CliRunner().invoke(app, ["reward", str(config)], catch_exceptions=False)
    assert "shards            5 (3 now)" in done.output
    assert "rewarded dataset" in done.output
    table = table_at(config)
    assert table["id"].to_pylist() == [f"r{i:02}" for i in range(20)]
    assert table["all_rm_scores"].to_pylist() == [[3.0, float(max(1, i))] for i in range(20)]
    again = CliRunner().invoke(app, ["reward", str(config)], catch_exceptions=False)
    assert "5 (none now)" in again.output
    other = parse_reward({**yaml.safe_load(config.read_text()), "reward": section(arguments={"per": 2.0})})
    with pytest.raises(FingerprintError, match="arguments"):
        prepare_reward(other)


@pytest.mark.soak
@pytest.mark.ray
def test_on_ray_the_rewards_are_those_of_the_plain_loop(config: Path) -> None:
    loaded = yaml.safe_load(config.read_text())
    reward(*prepare_reward(parse_reward(loaded)))
    here = table_at(config)
    there = {"rewarded": str(config.parent / "ray" / "rewarded"), "run": {"engine": "ray", "shard_rows": 4}}
    reward(*prepare_reward(parse_reward({**loaded, **there})))
    assert table_at(config.parent / "ray" / "config.yaml").equals(here)
