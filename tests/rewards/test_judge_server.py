"""A judge that vLLM runs, behind a server and in this process.

The model is small: that all is counted is tested, not that it is right.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import Storage, parse_self_play
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.selfplay.expansion import ANNOTATED
from pipeline.selfplay.rounds import self_play
from pipeline.steps.score import prepare_score, score
from pipeline.steps.select import prepare_select, select_subsets
from tests.rewards.vllm_server import vllm_serving
from tests.steps.conftest import PAIRS, make_config, write_jsonl
from tests.steps.test_self_play import settings

pytestmark = [
    pytest.mark.soak,
    pytest.mark.smollm2,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("not __import__('importlib.util').util.find_spec('vllm')", reason="no vLLM"),
]

NUM_PAIRS = 12


@pytest.fixture(scope="module")
def url(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    with vllm_serving(smollm2_dir, "judge", log) as url:
        yield url


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    short = [row for row in rows if len(json.dumps(row)) < 1000][:NUM_PAIRS]
    assert len(short) == NUM_PAIRS
    return write_jsonl(tmp_path_factory.mktemp("source") / "pairs.jsonl", short)


def scored(folder: Path, source: Path, reward: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    run = {"engine": "plain", "shard_rows": 16, "max_dropped": 1.0}
    config = make_config(folder, source, metric={"name": "explicit"}, reward=reward, run=run, select={"fraction": 1.0})
    *_, run = prepared = prepare_score(config)
    score(*prepared)
    dataset = Dataset.open(run.place)
    names = ["id", "drop_reason", *({"lead_chosen", "lead_rejected", "reward_chosen"} & {*dataset.schema.names})]
    return config, dataset.table(names, kept_only=False).sort_by("id").to_pylist()


@pytest.fixture(scope="module")
def served(url: str) -> dict[str, Any]:
    return {"backend": "judge", "urls": [url], "model": "judge"}


@pytest.fixture(scope="module")
def in_process(smollm2_dir: Path) -> dict[str, Any]:
    return {"backend": "vllm_judge", "model": str(smollm2_dir), "dtype": "float32", "num_gpus": 0, "max_length": 2048}


def leads_of(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[row["lead_chosen"], row["lead_rejected"]] for row in rows if row["drop_reason"] is None])


def test_margins_by_log_probabilities(served: dict[str, Any], in_process: dict[str, Any], source: Path, tmp_path: Path):
    """By a server and in this process, which gets one row more: its request leaves no room for an answer."""
    config, rows = scored(tmp_path / "served", source, served)
    lost = Counter(row["drop_reason"] for row in rows if row["drop_reason"])
    assert {*lost} <= {"no_verdict"}
    leads = leads_of(rows)
    assert len(leads) > NUM_PAIRS // 2
    assert np.all(np.abs(leads) < 1)
    assert len({*leads[:, 0]}) > NUM_PAIRS // 4
    [report] = select_subsets(prepare_select(config))
    flips = int(np.count_nonzero(np.sign(leads).prod(axis=1) > 0))
    counted = report["judges"]["reward"]["all"]["flips"]
    assert (counted["count"], counted["of"]) == (flips, len(leads))
    assert report["flow"]["dropped"] == dict(lost)

    long = {"id": "long", "prompt": "Count.", "chosen": "one two " * 1100, "rejected": "No."}
    pairs = [*map(json.loads, source.read_text().splitlines()), long]
    _, others = scored(tmp_path / "actor", write_jsonl(tmp_path / "pairs.jsonl", pairs), in_process)
    outcomes = {row["id"]: row["drop_reason"] for row in others}
    assert outcomes == {"long": "reward_error", **{row["id"]: row["drop_reason"] for row in rows}}
    np.testing.assert_allclose(leads_of(others), leads, rtol=0, atol=1e-4)


@pytest.mark.parametrize("judge", ["served", "in_process"])
def test_votes_and_ratings_of_self_play(
    judge: str, source: Path, tiny_model_dir: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest
):
    section = request.getfixturevalue(judge)
    few = write_jsonl(tmp_path / "few.jsonl", [json.loads(line) for line in source.read_text().splitlines()[:4]])
    votes = {"verdict": "votes", "votes": 2, "parameters": {"temperature": 0.8, "max_tokens": 24}}
    _, rows = scored(tmp_path / "votes", few, {**section, "prompt": "mt-bench", **votes})
    assert len(rows) == 4
    assert {row["drop_reason"] for row in rows} <= {None, "no_verdict"}
    for row in rows:
        if row["drop_reason"] is None:
            assert row["lead_chosen"] in (-1, -0.5, 0, 0.5, 1)

    given = settings(tmp_path, tiny_model_dir("llama", seed=1), tmp_path, rounds=1, train=None)
    sections = {"reward": {**section, "style": "pointwise"}, "run": {"engine": "plain", "max_dropped": 0.5}}
    list(self_play(parse_self_play(given | sections)))
    annotated = Place.open(str(tmp_path / "run" / "round-1" / "base" / "annotated"), Storage())
    rated = Dataset.open(annotated, ANNOTATED).table(["all_rm_scores"])["all_rm_scores"].to_pylist()
    ratings = [rating for row in rated for rating in row if rating is not None]
    assert len(ratings) > 4
    assert all(1 <= rating <= 9 for rating in ratings)
