"""Rewards of a real vLLM server, and of vLLM in the actor: those of our own engine, on the demo's pairs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.config import Storage, parse_self_play
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.demo.models import build_reward_model
from pipeline.drops import Reason
from pipeline.selfplay.expansion import ANNOTATED
from pipeline.selfplay.rounds import self_play
from pipeline.steps.score import prepare_score, score
from tests.rewards.vllm_server import vllm_serving
from tests.steps.conftest import PAIRS, make_config, write_jsonl
from tests.steps.test_self_play import settings

# vLLM's modules warn of each other's deprecations.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
    pytest.mark.smollm2,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("not __import__('importlib.util').util.find_spec('vllm')", reason="no vLLM"),
]

NUM_PAIRS, NUM_FEW = 12, 8
MOST_TOKENS = 400


@pytest.fixture(scope="module")
def model(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_reward_model(smollm2_dir, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_serving(model, "rm", tmp_path_factory.mktemp("log") / "vllm.log") as url:
        yield url


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """The shortest of the demo's pairs, as a CPU reads some 500 tokens a second."""
    return [json.loads(line) for line in sorted(PAIRS.read_text().splitlines(), key=len)[:NUM_PAIRS]]


@pytest.fixture(scope="module")
def source(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("source") / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def few(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("few") / "pairs.jsonl", rows[:NUM_FEW])


def scored(folder: Path, source: Path, reward: dict[str, Any], engine: str = "plain") -> pa.Table:
    run = {"engine": engine, "shard_rows": 20}
    *_, run = prepared = prepare_score(make_config(folder, source, metric={"name": "explicit"}, reward=reward, run=run))
    score(*prepared)
    names = ["id", "reward_chosen", "reward_rejected", "drop_reason"]
    return Dataset.open(run.place).table(names, kept_only=False).sort_by("id").combine_chunks()


@pytest.fixture(scope="module")
def expected(model: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    reward = {"backend": "classifier", "model": str(model), "dtype": "float32", "max_length": MOST_TOKENS}
    return scored(tmp_path_factory.mktemp("classifier"), source, reward)


def assert_equal(found: pa.Table, expected: pa.Table, num_rows: int = NUM_FEW) -> None:
    expected = expected.filter(pc.is_in(expected["id"], found["id"]))
    assert found.num_rows == num_rows
    assert found.select(["id", "drop_reason"]).equals(expected.select(["id", "drop_reason"]))
    for name in ("reward_chosen", "reward_rejected"):
        np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=0, atol=1e-4)


def endpoint(url: str, model: Path, **keys: Any) -> dict[str, Any]:
    reward = {"backend": "endpoint", "kind": "vllm", "urls": [url], "model": str(model), "served_name": "rm"}
    return {**reward, "max_length": MOST_TOKENS, **keys}


def test_a_server_gives_the_classifiers_own_rewards(url: str, model: Path, source: Path, expected: Any, tmp_path: Path):
    assert_equal(scored(tmp_path, source, endpoint(url, model)), expected, NUM_PAIRS)


@pytest.mark.soak
@pytest.mark.ray
def test_on_ray_too(url: str, model: Path, few: Path, expected: Any, tmp_path: Path):
    assert_equal(scored(tmp_path, few, endpoint(url, model, replicas=2), engine="ray"), expected)


def test_rows_that_are_too_long_for_the_server_are_dropped_alone(url: str, model: Path, tmp_path: Path):
    rows = [
        {"id": f"r{i}", "prompt": "Count.", "chosen": "one two " * n, "rejected": "No."}
        for i, n in enumerate((2, 1100, 3))
    ]
    found = scored(tmp_path, write_jsonl(tmp_path / "pairs.jsonl", rows), endpoint(url, model, max_length=4096))
    assert found["drop_reason"].to_pylist() == [None, Reason.REWARD_ERROR, None]


def in_process(model: Path) -> dict[str, Any]:
    return {"backend": "vllm", "model": str(model), "dtype": "float32", "num_gpus": 0, "max_length": MOST_TOKENS}


@pytest.mark.soak
def test_self_play_is_judged_by_the_server_and_by_vllm_in_this_process(
    url: str, model: Path, tiny_model_dir: Callable[..., Path], tmp_path: Path
):
    run = {"engine": "plain", "max_dropped": 0.5, "cache": str(tmp_path / "cache")}
    found = []
    for name, reward in (("server", endpoint(url, model)), ("process", in_process(model))):
        given = settings(tmp_path / name, tiny_model_dir("llama", seed=1), tmp_path, rounds=1, train=None)
        list(self_play(parse_self_play(given | {"reward": reward, "run": run})))
        annotated = Place.open(str(tmp_path / name / "run" / "round-1" / "base" / "annotated"), Storage())
        table = Dataset.open(annotated, ANNOTATED).table(["id", "all_rm_scores"]).sort_by("id")
        found.append([score for row in table["all_rm_scores"].to_pylist() for score in row])
    assert [*(tmp_path / "cache").rglob("*.parquet")]
    assert len(found[0]) > NUM_FEW
    np.testing.assert_allclose(*(np.array(rewards, dtype=float) for rewards in found), rtol=0, atol=1e-4)


@pytest.mark.soak
def test_vllm_in_this_process_gives_the_classifiers_own_rewards(model: Path, few: Path, expected: Any, tmp_path: Path):
    assert_equal(scored(tmp_path, few, in_process(model)), expected)
