"""fp8 from the config to the scores: the look at the order of the first rows comes before any row is scored."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import Config, parse_self_play
from pipeline.data.dataset import Dataset
from pipeline.demo.run import self_play_demo_config
from pipeline.errors import ConfigError, ModelError
from pipeline.steps.score import prepare_score, score
from tests.fixtures_models import tiny_model, tiny_tokenizer
from tests.steps.conftest import make_config, write_jsonl

IMPLICIT = {"metric": {"name": "implicit"}}
LOGPS = ["policy_logp_chosen", "policy_logp_rejected"]
NUM_PAIRS = 16  # the fewest whose ranks are compared


def section(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"model": str(folder), "dtype": "float32", "fp8": True, **changes}


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def nearly(folder: Path, **options: Any) -> Path:
    """The tiny model of seed 1 after a training that moved its weights by a thousandth."""
    model = tiny_model("llama", seed=1, **options)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1e-3 * weight.std() * torch.randn(weight.shape, generator=random))
    return saved(model, folder)


def with_outliers(folder: Path) -> Path:
    """A reward model with one feature so large that the scale of a token leaves nothing of the others."""
    model = tiny_model("llama", classifier=True, seed=3, num_labels=1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[3] *= 3e4
            layer.post_attention_layernorm.weight[3] *= 3e4
    return saved(model, folder)


def scores_of(config: Config) -> np.ndarray:
    *_, run = scoring = prepare_score(config)
    score(*scoring)
    dataset = Dataset.open(run.place)
    table = next(iter(dataset.tables(["id", *LOGPS]))).sort_by("id")
    return np.stack([table[name].to_numpy() for name in LOGPS])


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_scores_in_fp8_are_close_and_the_same_on_ray(
    tmp_path: Path, pairs: list[dict], tiny_model_dir: Callable[..., Path], caplog: pytest.LogCaptureFixture
):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:NUM_PAIRS])
    folder = tiny_model_dir("llama", seed=1)
    found = {}
    with caplog.at_level(logging.INFO, logger="pipeline"):
        for name, engine, fp8 in (("own", "plain", False), ("plain", "plain", True), ("ray", "ray", True)):
            options = {
                "policy": section(folder, fp8=fp8),
                "objective": {"name": "cpo"},
                "run": {"engine": engine, "shard_rows": 100},
            }
            found[name] = scores_of(make_config(tmp_path / name, source, **options, **IMPLICIT))
    told = re.search(r"rank correlation of implicit \(cpo\) margins with those without fp8: ([\d.]+)", caplog.text)
    assert told is not None
    assert float(told[1]) >= 0.99
    assert np.array_equal(found["plain"], found["ray"])
    assert not np.array_equal(found["plain"], found["own"])
    np.testing.assert_allclose(found["plain"], found["own"], rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["plain", pytest.param("ray", marks=[pytest.mark.soak, pytest.mark.ray])])
def test_what_little_two_models_differ_by_is_lost_in_fp8_and_stops_the_run(
    engine: str,
    tmp_path: Path,
    pairs: list[dict],
    tiny_model_dir: Callable[..., Path],
    request: pytest.FixtureRequest,
):
    if engine == "ray":
        request.getfixturevalue("local_ray")
    models = {"policy": section(nearly(tmp_path / "policy")), "reference": section(tiny_model_dir("llama", seed=1))}
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:NUM_PAIRS])
    config = make_config(tmp_path, source, **models, objective={"name": "dpo"}, run={"engine": engine}, **IMPLICIT)
    with pytest.raises(
        ModelError, match=r"implicit \(dpo\) margins of the first 16 rows.*fp8 from policy and reference"
    ):
        score(*prepare_score(config))
    assert not list(Path(config.scored).rglob("*.parquet"))


def test_rewards_that_rank_otherwise_stop_the_run(tmp_path: Path, pairs: list[dict]):
    reward = section(with_outliers(tmp_path / "reward"), backend="classifier")
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:NUM_PAIRS])
    config = make_config(tmp_path, source, reward=reward, metric={"name": "explicit"})
    with pytest.raises(ModelError, match=r"explicit margins of the first 16 rows have a rank correlation of -?0\."):
        score(*prepare_score(config))


@pytest.mark.slow
def test_equal_models_have_equal_margins_in_fp8_too(
    tmp_path: Path, pairs: list[dict], tiny_model_dir: Callable[..., Path]
):
    model = section(tiny_model_dir("llama", seed=1))
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:NUM_PAIRS])
    scores_of(make_config(tmp_path, source, policy=model, reference=model, objective={"name": "dpo"}, **IMPLICIT))


def test_too_few_rows_to_rank_are_named(
    tmp_path: Path, pairs: list[dict], tiny_model_dir: Callable[..., Path], caplog: pytest.LogCaptureFixture
):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:3])
    policy = section(tiny_model_dir("llama", seed=1))
    scores_of(make_config(tmp_path, source, policy=policy, objective={"name": "simpo"}, **IMPLICIT))
    assert "fp8: 3 rows with implicit (simpo) margins are too few" in caplog.text


def test_the_plan_tells_fp8(tmp_path: Path, pairs: list[dict], tiny_model_dir: Callable[..., Path]):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:NUM_PAIRS])
    policy = section(tiny_model_dir("llama", seed=1))
    config = make_config(tmp_path, source, policy=policy, objective={"name": "simpo"}, **IMPLICIT)
    prepare_score(config)
    plan = json.loads((Path(config.scored) / "run.json").read_text())
    assert plan["fingerprint"]["policy"]["fp8"] is True


def test_self_play_has_no_fp8_rewards():
    config = self_play_demo_config(Path("demo"), Path("policy"), Path("reward"))
    config["reward"] = {**config["reward"], "fp8": True}
    with pytest.raises(ConfigError, match="fp8 is not for self-play: rewards choose"):
        parse_self_play(config)
