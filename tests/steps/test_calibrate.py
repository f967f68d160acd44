"""`alignpot calibrate`: the numbers are those of plain numpy on the two scored datasets."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

import pipeline
from pipeline.cli import app
from pipeline.errors import ConfigError, DataError
from pipeline.steps.calibrate import _recall
from tests.steps.conftest import write_jsonl

NUM_ROWS = 60


def reward(name: str = "length", **keys: Any) -> dict[str, Any]:
    return {"backend": "function", "function": f"tests.rewards.functions:{name}", "isolate": False, **keys}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    words = [" ".join(["word"] * int(n)) for n in rng.integers(1, 30, 2 * NUM_ROWS)]
    rows = [
        {"id": f"r{i}", "prompt": "Why?", "chosen": f"{words[2 * i]} a", "rejected": f"{words[2 * i + 1]} bcd"}
        for i in range(NUM_ROWS)
    ]
    return {
        "source": {"path": str(write_jsonl(tmp_path / "pairs.jsonl", rows)), "id_column": "id"},
        "reward": reward(),
        "scored": str(tmp_path / "scored"),
        "metric": {"name": "explicit"},
        "select": {"fraction": 0.25},
        "run": {"engine": "plain", "shard_rows": 16},
    }


def command(config: dict[str, Any], folder: Path, *words: str) -> Any:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return CliRunner().invoke(app, ["calibrate", str(folder / "config.yaml"), *words])


def rows_at(path: Path) -> dict[str, Any]:
    table = pq.read_table(path / "parts").sort_by("id")
    return {name: np.array(table[name]) for name in ("id", "reward_chosen", "reward_rejected", "status")}


def test_differences_ranks_and_overlap_are_those_of_numpy(config: dict[str, Any], tmp_path: Path) -> None:
    done = command(config, tmp_path, "--set", f"reward.function={__name__}:nearly_the_length", "--rows", "40", "--json",
                   "--keep", str(tmp_path / "kept"))  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.output[done.output.index("{") :])
    sides = [rows_at(tmp_path / "kept" / side) for side in ("first", "second")]
    kept = sides[0]["status"] == "kept"
    assert kept.sum() == found["rows"]["taken"] == found["rows"]["compared"] == 40
    first, second = ((side["reward_chosen"] - side["reward_rejected"])[kept].astype(float) for side in sides)
    numbers = found["margins"]["margin_explicit"]
    z = [(margin - margin.mean()) / margin.std() for margin in (first, second)]
    for suffix, difference in (("", second - first), ("_z", z[1] - z[0])):
        assert numbers[f"max{suffix}"] == pytest.approx(np.abs(difference).max())
        assert numbers[f"mean{suffix}"] == pytest.approx(np.abs(difference).mean())
        assert numbers[f"rms{suffix}"] == pytest.approx(np.sqrt((difference**2).mean()))
    assert numbers["other_sign"] == pytest.approx(np.mean(np.sign(first) != np.sign(second)))
    assert 0.9 < numbers["rank_correlation"] < 1.0
    assert found["selection"]["fraction"] == 0.25
    assert 0.0 < found["selection"]["overlap"] <= 1.0
    recall = found["selection"]["recall"]
    assert list(recall) == ["1", "1.5", "2", "3", "4", "6", "8"]
    shares = list(recall.values())
    assert 0 < shares[0] <= shares[1] <= shares[2] <= shares[3]
    assert shares[4:] == [1.0, 1.0, 1.0]  # four times a quarter is every row
    assert [name for name, *_ in found["differs"]] == ["reward.function"]
    for side, rates in found["rows_per_second"].items():
        assert found["hours_for_a_million_rows"][side]["reward"] * rates["reward"] == pytest.approx(
            1e6 / 3600, rel=1e-3
        )
    assert not (tmp_path / "scored").exists()


def test_recall_is_the_share_of_what_one_selects_among_the_best_of_the_other() -> None:
    first, noise = np.random.default_rng(0).normal(size=(2, 500))
    second = first + noise
    best = {*np.argsort(-first)[:50].tolist()}
    for size, share in _recall(first, second, Fraction("0.1")).items():
        superset = {*np.argsort(-second)[: round(float(size) * 50)].tolist()}
        assert share == pytest.approx(len(best & superset) / 50)


def nearly_the_length(rows: list[dict[str, Any]]) -> list[float]:
    return [float(len(row["response"][-1]["content"]) // 17) for row in rows]


def test_another_unit_moves_margins_and_nothing_else(config: dict[str, Any], tmp_path: Path) -> None:
    other = {**config, "reward": reward(arguments={"per": 0.5})}
    found = pipeline.calibrate(config, other, rows=NUM_ROWS)
    numbers = found["margins"]["margin_explicit"]
    assert numbers["max"] > 1
    assert numbers["max_z"] == pytest.approx(0, abs=1e-12)
    assert (numbers["rank_correlation"], numbers["other_sign"]) == (pytest.approx(1.0), 0.0)
    assert found["selection"]["overlap"] == 1.0
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    done = command(config, tmp_path, "--against", str(tmp_path / "other.yaml"))
    assert "reward.arguments.per: nothing | 0.5" in done.output
    for words in ("largest difference", "in z units", "overlap: rows in both", "rows a second"):
        assert words in done.output


def test_rewards_of_the_data_are_compared_too_and_rows_may_come_from_several_sources(
    config: dict[str, Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        rows = [
            {"prompt": f"{name} {i}?", "chosen": "x" * int(n), "rejected": "y", "score_chosen": float(n) + 3,
             "score_rejected": 1.0}
            for i, n in enumerate(rng.integers(2, 50, NUM_ROWS))
        ]  # fmt: skip
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    sources = [{"name": name, "path": str(tmp_path / f"{name}.jsonl")} for name in ("a", "b")]
    both = {**{key: value for key, value in config.items() if key != "source"}, "sources": sources}
    found = pipeline.calibrate(both, {**both, "reward": {"backend": "columns"}}, rows=100)
    assert found["rows"]["compared"] == 100
    assert found["margins"]["margin_explicit"]["mean"] == pytest.approx(3.0)
    assert found["margins"]["margin_explicit"]["max"] == pytest.approx(3.0)
    again = pipeline.calibrate(both, {**both, "reward": reward(arguments={"per": 2.0})}, rows=100)
    assert again["selection"]["overlap"] == 1.0


def test_rows_that_one_side_drops_are_counted_and_left_out(config: dict[str, Any]) -> None:
    found = pipeline.calibrate(config, {**config, "reward": reward("picky")}, rows=NUM_ROWS)
    assert found["rows"]["dropped_by_first_only"] == {}
    [(why, count)] = found["rows"]["dropped_by_second_only"].items()
    assert why == "reward: no_reward"
    assert found["rows"]["compared"] == NUM_ROWS - count


def test_what_cannot_be_compared_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    done = command(config, tmp_path)
    assert isinstance(done.exception, ConfigError)
    assert "--against" in str(done.exception)
    with pytest.raises(DataError, match="wanted two or more"):
        pipeline.calibrate(config, {**config, "reward": reward("nothing")}, rows=20)
    cluster = {**config, "run": {"engine": "ray", "address": "10.0.0.1:6379"}}
    with pytest.raises(ConfigError, match="--keep"):
        pipeline.calibrate(cluster, config)


@pytest.mark.slow
def test_two_policies_are_compared_by_the_implicit_margin(
    config: dict[str, Any], tiny_model_dir: Callable[..., Path]
) -> None:
    def scoring(seed: int, **keys: Any) -> dict[str, Any]:
        policy = {"model": str(tiny_model_dir("llama", seed=seed)), "dtype": "float32", **keys}
        return {**config, "policy": policy, "metric": {"name": "potential"}}

    same = pipeline.calibrate(scoring(1), scoring(1, token_budget=64), rows=24)
    assert same["margins"]["margin_implicit"]["max"] < 1e-4
    assert [name for name, *_ in same["differs"]] == ["policy.token_budget"]
    assert same["selection"]["overlap"] == 1.0
    other = pipeline.calibrate(scoring(1), scoring(2), rows=24)
    assert other["margins"]["margin_implicit"]["rms_z"] > 0.01
    assert {*other["rows_per_second"]["first"]} == {"policy", "reward"}
