"""A judge that a real vLLM server runs. The model is small: that all is counted is tested, not that it is right."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.dataset import Dataset
from pipeline.steps.score import prepare_score, score
from pipeline.steps.select import prepare_select, select_subsets
from tests.rewards.vllm_server import vllm_serving
from tests.steps.conftest import PAIRS, make_config, write_jsonl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.smollm2,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("not __import__('importlib.util').util.find_spec('vllm')", reason="no vLLM"),
]

NUM_PAIRS = 24


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


def scored(
    folder: Path, source: Path, url: str, engine: str = "plain", **keys: Any
) -> tuple[Any, list[dict[str, Any]]]:
    reward = {"backend": "judge", "urls": [url], "model": "judge", **keys}
    run = {"engine": engine, "shard_rows": 16, "max_dropped": 1.0}
    config = make_config(folder, source, metric={"name": "explicit"}, reward=reward, run=run, select={"fraction": 1.0})
    *_, run = prepared = prepare_score(config)
    score(*prepared)
    dataset = Dataset.open(run.place)
    names = ["id", "drop_reason", *({"lead_chosen", "lead_rejected", "reward_chosen"} & {*dataset.schema.names})]
    return config, dataset.table(names, kept_only=False).sort_by("id").to_pylist()


@pytest.mark.parametrize("engine", ["plain", pytest.param("ray", marks=pytest.mark.ray)])
def test_margins_by_log_probabilities(engine: str, url: str, source: Path, tmp_path: Path):
    config, rows = scored(tmp_path, source, url, engine)
    lost = Counter(row["drop_reason"] for row in rows if row["drop_reason"])
    assert {*lost} <= {"no_verdict"}
    kept = [row for row in rows if row["drop_reason"] is None]
    assert len(kept) > NUM_PAIRS // 2
    leads = np.array([[row["lead_chosen"], row["lead_rejected"]] for row in kept])
    assert np.all(np.abs(leads) < 1)
    assert len({*leads[:, 0]}) > NUM_PAIRS // 4
    [report] = select_subsets(prepare_select(config))
    flips = int(np.count_nonzero(np.sign(leads).prod(axis=1) > 0))
    counted = report["judges"]["reward"]["all"]["flips"]
    assert (counted["count"], counted["of"]) == (flips, len(kept))
    assert report["flow"]["dropped"] == dict(lost)


def test_votes_and_ratings(url: str, source: Path, tmp_path: Path):
    few = write_jsonl(tmp_path / "few.jsonl", [json.loads(line) for line in source.read_text().splitlines()[:8]])
    votes = {"verdict": "votes", "votes": 2, "parameters": {"temperature": 0.8, "max_tokens": 24}}
    _, rows = scored(tmp_path / "votes", few, url, prompt="mt-bench", **votes)
    assert len(rows) == 8
    assert {row["drop_reason"] for row in rows} <= {None, "no_verdict"}
    for row in rows:
        if row["drop_reason"] is None:
            assert row["lead_chosen"] in (-1, -0.5, 0, 0.5, 1)
    _, rated = scored(tmp_path / "ratings", few, url, style="pointwise")
    rewards = [row["reward_chosen"] for row in rated if row["drop_reason"] is None]
    assert len(rewards) > 4
    assert all(1 <= reward <= 9 for reward in rewards)
