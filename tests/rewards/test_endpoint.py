"""Rewards of a server: the classifier's own numbers in every shape, and no row lost, doubled or paid for twice."""

import json
import logging
import math
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from pipeline.config import ClassifierReward, parse_config
from pipeline.data.dataset import Dataset
from pipeline.errors import AlignpotError, ConfigError, FingerprintError, TemporaryError
from pipeline.models.packing import Completion
from pipeline.models.rewards import ClassifierEngine
from pipeline.rewards import http, probe
from pipeline.rewards.kinds import inputs_of
from pipeline.rewards.registry import reward_backend
from pipeline.schema import ANNOTATED_SCHEMA
from pipeline.steps.annotate import annotate_stages
from pipeline.steps.score import prepare_score, score
from tests.fixtures_models import tiny_tokenizer
from tests.rewards.reward_servers import Ids, RewardServer
from tests.rewards.service import Asked, Reply, serving
from tests.steps.conftest import make_config, write_jsonl
from tests.steps.test_annotate import candidate_table

PAIRS = [
    {"id": f"r{i}", "prompt": f"What is {i}? 日本" + " why" * (i % 5), "chosen": f"It is {i}.", "rejected": "No" * i}
    for i in range(1, 25)
]
NUM_PROBES = 4


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(http, "_LONGEST_PAUSE_S", 0.1)


@pytest.fixture(scope="module")
def model(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("llama", classifier=True, seed=3)


@pytest.fixture(scope="module")
def own_reward(model: Path) -> Callable[[Ids], float]:
    """The reward of the real classifier for some token ids."""
    engine = ClassifierEngine.load(ClassifierReward(backend="classifier", model=str(model), dtype="float32"))

    def reward(ids: Ids) -> float:
        [value] = engine.score([[Completion(ids=np.asarray(ids, np.int32), start=0)]]).values
        return 10.0 * float(value)  # so that not all lie between 0 and 1

    return reward


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("source") / "pairs.jsonl", PAIRS)


@pytest.fixture
def server(own_reward: Callable[[Ids], float]) -> Iterator[RewardServer]:
    with serving(RewardServer("vllm", own_reward)) as server:
        yield server


@pytest.fixture
def config(tmp_path: Path, source: Path, model: Path) -> Callable[..., Any]:
    def make(urls: list[str], *, folder: str = "work", run: dict[str, Any] | None = None, **keys: Any) -> Any:
        reward = {"backend": "endpoint", "kind": "vllm", "model": str(model), "served_name": "rm", "batch_rows": 5}
        sections = {"metric": {"name": "explicit"}, "run": {"shard_rows": 8, "cache": str(tmp_path / "cache")}}
        sections["run"] |= run or {}
        return make_config(tmp_path / folder, source, **sections, reward={**reward, "urls": urls, **keys})

    return make


def scored(config: Any) -> pa.Table:
    *_, run = prepared = prepare_score(config)
    score(*prepared)
    names = ["id", "reward_chosen", "reward_rejected", "status", "drop_stage", "drop_reason"]
    return Dataset.open(run.place).table(names, kept_only=False).sort_by("id")


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, source: Path, model: Path
) -> Callable[..., list[tuple[str, float, float]]]:
    """Rows as the classifier in this process scores them, ten times as much."""
    reward = {"backend": "classifier", "model": str(model), "dtype": "float32"}
    folder = tmp_path_factory.mktemp("classifier")
    rows = scored(make_config(folder, source, metric={"name": "explicit"}, reward=reward)).to_pylist()
    return [(row["id"], 10 * row["reward_chosen"], 10 * row["reward_rejected"]) for row in rows]


def assert_equal(found: pa.Table, expected: list[tuple[str, float, float]]) -> None:
    rows = found.to_pylist()
    assert [row["id"] for row in rows] == [row[0] for row in expected]
    assert [row["drop_reason"] for row in rows] == [None] * len(rows)
    for name, column in (("reward_chosen", 1), ("reward_rejected", 2)):
        np.testing.assert_allclose([row[name] for row in rows], [row[column] for row in expected], atol=1e-3)


@pytest.mark.parametrize("kind", ["vllm", "sglang", "openrlhf", "tei"])
def test_each_server_gives_the_classifiers_own_rewards(
    kind: str, own_reward: Callable[[Ids], float], config: Callable[..., Any], expected: Any, tmp_path: Path
) -> None:
    def encode(text: str) -> list[int]:
        return tiny_tokenizer()(text)["input_ids"]

    with serving(RewardServer(kind, own_reward, encode)) as server:
        made = config([server.url], kind=kind)
        assert_equal(scored(made), expected)
        scoring = [asked for asked in server.asked if asked.body is not None]
        assert len(scoring) == 2 + 3 * math.ceil(16 / 5)
        table = candidate_table([["a b", "", "none at all"], ["", ""]])
        applies = [stage.build() for stage in annotate_stages(made.members, made.tokens, ANNOTATED_SCHEMA)]
        for apply in applies:
            table = apply(table)
        applies[-1].close()
    rewards = table["all_rm_scores"].to_pylist()
    assert rewards[0][1] is None
    assert rewards[0][0] != rewards[0][2]
    assert table["drop_reason"].to_pylist() == [None, "empty_responses"]


def test_a_server_with_faults_costs_no_row_and_no_second_payment(
    server: RewardServer, config: Callable[..., Any], expected: Any
) -> None:
    faults = iter(
        [
            lambda rows: Reply(status=503),
            lambda rows: Reply(status=429, headers={"Retry-After": "0"}),
            lambda rows: Reply(server.shape([1.0] * len(rows)), stall_s=3.0),
            lambda rows: Reply(server.shape([1.0] * len(rows)), is_cut=True),
            lambda rows: Reply(server.shape([1.0] * (len(rows) - 1))),
            lambda rows: Reply(server.shape([1.0] * (len(rows) + 1))),
            lambda rows: Reply(server.shape([math.nan, *[None] * (len(rows) - 1)])),
        ]
    )

    def every_second(asked: Asked, rows: list[Ids]) -> Reply | None:
        fault = next(faults, None) if asked.number > 2 and asked.number % 2 else None
        return fault and fault(rows)

    server.fault = every_second
    assert_equal(scored(config([server.url], timeout_s=2.0, concurrency=4)), expected)
    assert next(faults, None) is None
    counts = [count for _, count in server.paid.most_common()]
    assert counts[:NUM_PROBES] == [2] * NUM_PROBES
    assert set(counts[NUM_PROBES:]) == {1}
    num_asked = len(server.asked)
    assert_equal(scored(config([server.url], folder="again", run={"shard_rows": 5})), expected)
    assert len(server.asked) == num_asked + 2  # the probe, on the driver and for the stage


def test_a_poisonous_row_is_dropped_alone(
    server: RewardServer, config: Callable[..., Any], expected: Any, caplog: pytest.LogCaptureFixture
) -> None:
    poison = tiny_tokenizer()("It is 7.", add_special_tokens=False)["input_ids"]

    def refuses(_: Asked, rows: list[Ids]) -> Reply | None:
        held = any(",".join(map(str, poison)) in ",".join(map(str, row)) for row in rows)
        return Reply({"error": {"message": "too long: It is 7.", "type": "BadRequestError"}}, 400) if held else None

    server.fault = refuses
    with caplog.at_level(logging.WARNING):
        found = scored(config([server.url])).to_pylist()
    dropped = [row for row in found if row["status"] == "dropped"]
    assert [(row["id"], row["drop_stage"], row["drop_reason"]) for row in dropped] == [("r7", "reward", "reward_error")]
    kept = [row for row in expected if row[0] != "r7"]
    np.testing.assert_allclose([row["reward_chosen"] for row in found if row["id"] != "r7"], [r[1] for r in kept])
    assert "BadRequestError" in caplog.text
    assert "r7" in caplog.text
    assert "It is 7" not in caplog.text
    assert set(server.paid.values()) == {1, 2}


def test_a_row_without_a_number_is_asked_for_twice_and_dropped(
    server: RewardServer, config: Callable[..., Any], own_reward: Callable[[Ids], float]
) -> None:
    end = tuple(tiny_tokenizer()("It is 7.", add_special_tokens=False)["input_ids"])
    asked: Counter[Ids] = Counter()

    def reward(ids: Ids) -> float:
        asked[ids] += 1
        return math.nan if ids[-len(end) - 2 : -2] == end else own_reward(ids)

    server.reward = reward
    found = scored(config([server.url])).to_pylist()
    assert [row["drop_reason"] for row in found if row["id"] == "r7"] == ["non_finite_reward"]
    assert Counter(row["status"] for row in found) == {"kept": len(PAIRS) - 1, "dropped": 1}
    assert Counter(asked.values()) == {1: 2 * len(PAIRS) - 1, 2: NUM_PROBES + 1}


def test_a_sigmoid_is_refused_with_what_to_set(own_reward: Callable[[Ids], float], config: Callable[..., Any]) -> None:
    with serving(RewardServer("vllm", own_reward, keeps_sigmoid=True)) as server:
        with pytest.raises(ConfigError, match=r"between 0 and 1.*sigmoid.*use_activation.*reward\.bounded: true"):
            scored(config([server.url]))
        table = scored(config([server.url], bounded=True, folder="bounded"))
    assert max(table["reward_chosen"].to_pylist()) <= 1


def test_another_model_under_the_same_name_is_never_mixed_in(
    server: RewardServer, config: Callable[..., Any], own_reward: Callable[[Ids], float], expected: Any
) -> None:
    made = config([server.url])
    pinned, _, _ = prepare_score(made)
    scored(made)
    server.reward = lambda ids: own_reward(ids) * 1.001  # as another batch or bfloat16 may move it
    scored(made)
    server.reward = lambda ids: own_reward(ids) + 0.5
    with pytest.raises(FingerprintError, match=r"reward\.probe"):
        scored(made)
    with pytest.raises(ConfigError, match="serves another model than the run began with"):
        reward_backend(pinned.reward).scorer()
    with pytest.raises(ConfigError, match=r"run\.cache holds rewards of another model.*reward\.version"):
        scored(config([server.url], folder="other"))
    with serving(RewardServer("vllm", own_reward)) as second, pytest.raises(ConfigError, match="than the other URLs"):
        scored(config([server.url, second.url], folder="both"))
    found = scored(config([server.url], folder="new", version="2"))
    np.testing.assert_allclose(found["reward_chosen"].to_pylist(), [row[1] + 0.5 for row in expected], atol=1e-3)


def test_a_server_that_is_not_there_ends_the_run_for_now(
    config: Callable[..., Any], own_reward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_LIMIT_S", 1.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(TemporaryError, match=r"ClientConnectorError from http://127"):
            prepare_score(config([dead]))
        with serving(RewardServer("vllm", own_reward)) as server:
            prepare_score(config([dead, server.url]))


def test_a_server_that_fails_on_every_row_ends_the_run(server: RewardServer, config: Callable[..., Any]) -> None:
    server.fault = lambda asked, rows: Reply(status=400) if asked.number >= 2 else None
    with pytest.raises(AlignpotError, match=r"none of the first 16 dialogues has a reward: .* HTTP 400"):
        scored(config([server.url]))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"data": [{"index": i, "probs": [1.0, 2.0]} for i in range(NUM_PROBES)]}, "gives 2 numbers a dialogue"),
        ({"rewards": [1.0] * NUM_PROBES}, "an answer of another form than wanted, each time. Check the kind"),
    ],
)
def test_a_server_of_another_kind_or_model_is_refused(
    answer: Any, words: str, server: RewardServer, config: Callable[..., Any]
) -> None:
    server.fault = lambda asked, rows: Reply(answer)
    with pytest.raises(ConfigError, match=words):
        prepare_score(config([server.url]))


def test_the_configs_of_the_page_parse() -> None:
    page = (Path(__file__).parents[2] / "jobs" / "REWARDS.md").read_text()
    sections = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)]
    base = {"scored": "s", "metric": {"name": "explicit"}}
    found = [
        parse_config(base | each).reward.backend for each in sections if "reward" in each and "rewarded" not in each
    ]
    assert {"vllm", "endpoint", "judge", "vllm_judge", "function"} <= {*found}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"urls": ["10.0.0.4:8000"]}, "wanted http://host:port"),
        ({"urls": ["http://user:pw@host:1"]}, "wanted http://host:port"),
        ({"key_variable": "sk-canary"}, "name of an environment variable"),
        ({"kind": "triton"}, "vllm, sglang, openrlhf or tei"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_without_repeating_a_secret(keys: dict[str, Any], words: str) -> None:
    reward = {"backend": "endpoint", "kind": "vllm", "urls": ["http://host:1"], "model": "m", **keys}
    with pytest.raises(ConfigError, match=words) as error:
        parse_config({"scored": "s", "reward": reward})
    assert "canary" not in str(error.value)
    assert "pw@" not in str(error.value)


def test_texts_are_those_of_which_the_server_makes_the_same_ids() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    plain = tokenizer("The answer is 日本", add_special_tokens=False)["input_ids"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    reward = {"backend": "endpoint", "urls": ["http://host:1"], "model": "m"}
    configs = {
        kind: parse_config({"scored": "s", "reward": {**reward, "kind": kind}}).reward for kind in ("openrlhf", "tei")
    }
    whole = [1, *plain, 2]
    assert inputs_of(configs["openrlhf"], tokenizer)(whole) == "<|im_start|>The answer is 日本<|im_end|>"
    assert inputs_of(configs["tei"], tokenizer)(whole) == "The answer is 日本"
    assert inputs_of(configs["tei"], tokenizer)(plain) is None
    assert inputs_of(configs["openrlhf"], tokenizer)(plain[:-1]) is None  # ends within a character


def started(port: int, table: Path, log: Path, last: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.rewards.reward_servers", str(port), str(table), str(log), str(last)],
        cwd=Path(__file__).parents[2],
    )
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return process
    raise AssertionError("the server did not start")


def test_a_server_that_is_killed_in_the_middle_costs_no_row_and_nothing_twice(
    server: RewardServer, config: Callable[..., Any], expected: Any, tmp_path: Path
) -> None:
    scored(config([server.url], folder="which tells the ids"))
    table, log = tmp_path / "table.json", tmp_path / "paid"
    table.write_text(json.dumps([[ids, server.reward(ids)] for ids in server.paid]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = {"urls": [f"http://127.0.0.1:{port}"], "version": "not in the cache"}
    process = started(port, table, log, last=7)
    try:
        with pytest.raises(TemporaryError, match="have no answer"):
            scored(config(**keys, concurrency=1, deadline_s=1.0))
        assert process.wait() == -signal.SIGKILL
        assert 0 < len(Counter(log.read_text().splitlines())) < len(server.paid)
        process = started(port, table, log, last=-1)
        assert_equal(scored(config(**keys)), expected)
    finally:
        process.kill()
        process.wait()
    counts = sorted(Counter(log.read_text().splitlines()).values(), reverse=True)
    assert len(counts) == len(server.paid)
    assert set(counts[NUM_PROBES:]) == {1}
