"""Scoring by vLLM: the scored dataset of our own engine but for rounding, and never one dataset of both."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.errors import FingerprintError
from pipeline.steps.score import prepare_score, score
from tests.steps.conftest import make_config, write_jsonl

# vLLM's modules warn of each other's deprecations.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif("not __import__('importlib.util').util.find_spec('vllm')", reason="no vLLM"),
]

LOGPS = ["policy_logp_chosen", "policy_logp_rejected", "reference_logp_chosen", "reference_logp_rejected"]
VLLM = {"backend": "vllm", "num_gpus": 0}


@pytest.fixture(scope="module")
def models(tiny_model_dir: Callable[..., Path]) -> dict:
    """Policy and reference with heads of 32, the smallest that vLLM's CPU attention takes."""
    seeds = {"policy": 1, "reference": 2}
    sections = {
        role: {"model": str(tiny_model_dir("llama", seed=seed, hidden_size=128)), "dtype": "float32"}
        for role, seed in seeds.items()
    }
    return {**sections, "objective": {"name": "dpo", "beta": 0.1}, "metric": {"name": "implicit"}}


def by_vllm(models: dict) -> dict:
    return {**models, **{role: {**models[role], **VLLM} for role in ("policy", "reference")}}


def scored(config: Config) -> pa.Table:
    *_, run = scoring = prepare_score(config)
    score(*scoring)
    dataset = Dataset.open(run.place)
    names = ["id", *LOGPS, "num_tokens_chosen", "num_tokens_rejected"]
    return pa.concat_tables(dataset.tables(names)).sort_by("id").combine_chunks()


def assert_equal_but_for_rounding(found: pa.Table, expected: pa.Table) -> None:
    exact = ["id", "num_tokens_chosen", "num_tokens_rejected"]
    assert found.select(exact).equals(expected.select(exact))
    for name in LOGPS:
        num_tokens = expected.column(f"num_tokens_{name.rsplit('_', 1)[1]}").to_numpy()
        difference = (found.column(name).to_numpy() - expected.column(name).to_numpy()) / num_tokens
        assert np.abs(difference).max() < 1e-4


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, pairs: list[dict], models: dict) -> pa.Table:
    workdir = tmp_path_factory.mktemp("torch")
    return scored(make_config(workdir, write_jsonl(workdir / "pairs.jsonl", pairs[:20]), **models))


@pytest.mark.slow
def test_the_plain_loop_scores_policy_and_reference_by_vllm(tmp_path, pairs, models, expected):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:20])
    found = scored(make_config(tmp_path, source, **by_vllm(models), run={"shard_rows": 7}))
    assert found.num_rows == 20
    assert_equal_but_for_rounding(found, expected)


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.usefixtures("local_ray")
def test_actors_score_by_vllm(tmp_path, pairs, models, expected):
    """Each in an actor of its own; the reference is split between two processes of its actor."""
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:20])
    sections = by_vllm(models)
    sections["reference"]["engine_args"] = {"tensor_parallel_size": 2}
    run = {"engine": "ray", "shard_rows": 10}
    assert_equal_but_for_rounding(scored(make_config(tmp_path, source, **sections, run=run)), expected)


@pytest.mark.parametrize("begun_by_vllm", [False, True])
def test_scores_of_another_engine_are_refused(begun_by_vllm, tmp_path, pairs, models):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:8])
    begun, other = (by_vllm(models), models) if begun_by_vllm else (models, by_vllm(models))
    prepare_score(make_config(tmp_path, source, **begun))
    with pytest.raises(FingerprintError, match=r"policy\.backend"):
        prepare_score(make_config(tmp_path, source, **other))


def test_layout_is_no_part_of_the_fingerprint(tmp_path, pairs, models):
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs[:8])
    prepare_score(make_config(tmp_path, source, **by_vllm(models)))
    sections = by_vllm(models)
    sections["policy"] |= {"num_gpus": 2, "replicas": 2, "engine_args": {"tensor_parallel_size": 2}}
    prepare_score(make_config(tmp_path, source, **sections))
