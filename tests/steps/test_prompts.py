"""`alignpot prompts`: prompts by pass rate and by the variance of rewards, from each kind of candidates."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_from_disk
from typer.testing import CliRunner

import pipeline
from pipeline.cli import app
from pipeline.config import Storage, parse_prompts
from pipeline.data.place import Place
from pipeline.data.sealed import read_sealed
from pipeline.data.verify import verify
from pipeline.errors import ConfigError, DataError, FingerprintError, SchemaError, SourceError
from tests.steps.test_reward import section

LENGTHS = [[1, 2, 3, 4], [1, 1, 1, 1], [9, 9, 9, 9], [1, 9, 0, 9], [5, 1, 1, 1], [2, 0, 0, 0]]
"""Of the responses to each prompt; their reward is their length, and empty ones have none."""


def candidates(path: Path, **given: Any) -> str:
    rows = [
        {
            "id": f"p{i}",
            "prompt": f"Question {i}?",
            "responses": ["x" * length for length in lengths],
            "answer_key": f"key {i}",
        }
        for i, lengths in enumerate(LENGTHS)
    ]
    source = {"id_column": "id", "passthrough": ["answer_key"]}
    pipeline.reward(rows, path=path, source=source, **(given or {"reward": section()}))
    return str(path)


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows = [row for file in sorted((path / "parquet").glob("*")) for row in pq.ParquetFile(file).read().to_pylist()]
    assert load_from_disk(str(path / "hf"))["train"].to_list() == rows
    return rows


def test_prompts_inside_a_band_of_the_pass_rate_are_kept_with_their_figures(tmp_path: Path):
    text = pipeline.prompts(candidates(tmp_path / "rewarded"), tmp_path / "out", pass_above=2, pass_rate=[0.25, 0.75])
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == ["p0", "p3", "p4"]
    for row in rows:
        rewards = np.array([length for length in LENGTHS[int(row["id"][1:])] if length])
        assert row == {
            "id": row["id"],
            "prompt": [{"role": "user", "content": f"Question {row['id'][1:]}?"}],
            "answer_key": f"key {row['id'][1:]}",
            "num_responses": rewards.size,
            "pass_rate": pytest.approx((rewards > 2).mean()),
            "reward_mean": pytest.approx(rewards.mean()),
            "reward_variance": pytest.approx(rewards.var()),
        }
    report = read_sealed(Place.open(str(tmp_path / "out" / "report.json"), Storage()))
    assert (report["num_rows"], report["num_prompts"], report["num_kept"]) == (6, 5, 3)
    assert report["left_out"] == {"repeated_prompts": 0, "too_few_rewards": 1, "outside_pass_rate": 2}
    assert "3 of 5 kept, of 6 rows" in text
    assert f'load_from_disk("{tmp_path}/out/hf")["train"]' in text
    assert "complete dataset of kind export" in verify(Place.open(str(tmp_path / "out"), Storage()))


def test_a_band_of_the_variance_is_one_of_quantiles(tmp_path: Path):
    scored = candidates(tmp_path / "rewarded")
    pipeline.prompts(scored, tmp_path / "out", variance=[0.5, 1.0])
    # Of 1.25, 0, 0, 14.2 and 3, the middle one and what lies above it.
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["p0", "p3", "p4"]
    assert all(row["pass_rate"] is None for row in rows_of(tmp_path / "out"))
    pipeline.prompts(scored, tmp_path / "both", variance=[0.5, 1.0], pass_above=4, pass_rate=[0.1, 0.5])
    assert [row["id"] for row in rows_of(tmp_path / "both")] == ["p4"]


def test_scored_rows_of_one_prompt_count_once(tmp_path: Path):
    rows = [
        {"prompt": f"Question {i // 2}?", "chosen": "a" * (i + 1), "rejected": "b", "score_chosen": 1.0,
         "score_rejected": 0.0, "rewards_all": [0.0, 1.0, float(i // 2)]}
        for i in range(6)
    ]  # fmt: skip
    scored = pipeline.score(rows, reward="columns", path=tmp_path / "scored")
    pipeline.prompts(scored, tmp_path / "out", pass_above=0.5, pass_rate=[0.5, 1.0])
    kept = rows_of(tmp_path / "out")
    assert sorted(row["prompt"][0]["content"] for row in kept) == ["Question 1?", "Question 2?"]
    assert {"chosen", "rewards_all", "status", "reward_chosen"}.isdisjoint(kept[0])


def test_one_of_several_rewards_is_named(tmp_path: Path):
    rewards = {"long": section(), "half": section(arguments={"per": 2.0})}
    several = candidates(tmp_path / "rewarded", rewards=rewards)
    with pytest.raises(SchemaError, match=r"needs prompt and all_rm_scores or.*prompts\.reward to one of half, long"):
        pipeline.prompts(several, tmp_path / "out", variance=[0.5, 1.0])
    pipeline.prompts(several, tmp_path / "out", reward="half", pass_above=2, pass_rate=[0.1, 1.0])
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["p2", "p3", "p4"]


def test_the_command_finds_its_prompts_and_refuses_others(tmp_path: Path):
    config = {
        "candidates": candidates(tmp_path / "rewarded"),
        "output": str(tmp_path / "out"),
        "prompts": {"variance": [0.5, 1.0]},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def run(*more: str) -> Any:
        return CliRunner().invoke(app, ["prompts", str(tmp_path / "config.yaml"), *more])

    first, before = run(), (tmp_path / "out" / "_SUCCESS.json").read_bytes()
    assert first.exit_code == 0, first.output
    assert run().output == first.output
    assert (tmp_path / "out" / "_SUCCESS.json").read_bytes() == before
    assert isinstance(run("--set", "prompts.variance=[0.1, 1.0]").exception, FingerprintError)


def test_what_cannot_be_chosen_from_is_refused(tmp_path: Path):
    place = candidates(tmp_path / "rewarded")
    with pytest.raises(DataError, match=r"no prompt is inside the band.*outside_pass_rate"):
        pipeline.prompts(place, tmp_path / "out", pass_above=100, pass_rate=[0.5, 1.0])
    with pytest.raises(SourceError, match="holds no complete dataset"):
        pipeline.prompts(tmp_path / "nothing", tmp_path / "out", variance=[0.5, 1.0])
    pairs = [{"prompt": "What?", "chosen": "a", "rejected": "b"}]
    scored = pipeline.score(pairs, reward=section(), path=tmp_path / "scored")
    with pytest.raises(DataError, match=r"no prompt is inside the band.*too_few_rewards': 1"):
        pipeline.prompts(scored, tmp_path / "out", variance=[0.5, 1.0])
    for band, says in (
        ({}, "needs pass_rate or variance"),
        ({"pass_rate": [0.1, 0.9]}, "pass_rate needs pass_above"),
        ({"variance": [0.9, 0.1]}, "a lower and a higher number"),
        ({"variance": [0.1, 1.9]}, "got 1.9"),
    ):
        with pytest.raises(ConfigError, match=says):
            parse_prompts({"candidates": "c", "output": "o", "prompts": band})


@pytest.mark.slow
def test_grpo_trains_on_the_prompts(tmp_path: Path, tiny_model_dir: Any):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    pipeline.prompts(candidates(tmp_path / "rewarded"), tmp_path / "out", variance=[0.0, 1.0])
    folder = tiny_model_dir("llama")
    seen = []

    def by_key(completions: Any, answer_key: list[str], **_: Any) -> list[float]:
        seen.extend(answer_key)
        return [float(len(completion[0]["content"])) for completion in completions]

    arguments = GRPOConfig(
        output_dir=str(tmp_path / "trained"), per_device_train_batch_size=2, num_generations=2, max_completion_length=4,
        max_steps=1, use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=by_key,
        args=arguments,
        train_dataset=load_from_disk(str(tmp_path / "out" / "hf"))["train"],
    ).train()
    assert seen
    assert {*seen} <= {f"key {i}" for i in range(len(LENGTHS))}
