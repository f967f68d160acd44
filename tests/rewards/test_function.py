"""Rewards of a user's function: right numbers for the rows that have one, a reason for every other, and no row lost."""

import importlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.config import FunctionReward, Tokens, parse_self_play
from pipeline.data.dataset import Dataset
from pipeline.errors import AlignpotError, ConfigError, FingerprintError, TemporaryError
from pipeline.rewards.backend import Dialogue
from pipeline.rewards.function import FunctionBackend
from pipeline.schema import ANNOTATED_SCHEMA
from pipeline.selfplay.rounds import self_play
from pipeline.steps import step
from pipeline.steps.annotate import annotate_stages
from pipeline.steps.score import prepare_score, score
from tests.rewards import functions
from tests.steps.conftest import make_config, write_jsonl
from tests.steps.test_annotate import candidate_table
from tests.steps.test_self_play import settings

PAGE = (Path(__file__).parents[2] / "jobs" / "REWARDS.md").read_text()
HERE = "tests.rewards.functions"


def section(name: str, **keys: Any) -> dict[str, Any]:
    return {"backend": "function", "function": f"{HERE}:{name}", **keys}


def dialogues(texts: list[str]) -> list[list[Dialogue]]:
    prompt = [{"role": "user", "content": "Why?"}]
    return [
        [Dialogue(id=f"row-{i}", prompt=prompt, answer=[{"role": "assistant", "content": text}])]
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("isolate", [True, False])
def test_a_row_that_fails_costs_itself_and_no_other(isolate: bool, caplog: pytest.LogCaptureFixture) -> None:
    wanted = {"one two": 2.0, "none": "no_reward", "nan": None, "three more words": 3.0, "hang": "reward_timeout"}
    wanted |= {"text": "reward_error", "a": 1.0, "raise": "reward_error", "long": "reward_error", "a b": 2.0}
    wanted |= {"die": "reward_error", "last one": 2.0} if isolate else {}
    reward = FunctionReward(**section("by_word", batch_rows=3, timeout_s=1.0 if isolate else 0.2, isolate=isolate))
    scorer = FunctionBackend(reward).scorer()
    with caplog.at_level(logging.WARNING):
        found = scorer.score(dialogues([*wanted]))
    scorer.close()
    values = [found.left_out.get(i, None if value != value else value) for i, value in enumerate(found.values)]
    assert values == [*wanted.values()]
    assert "raised ValueError at line" in caplog.text
    assert "row-7" in caplog.text
    assert ("exit code 3" in caplog.text) == isolate
    assert "never shown" not in caplog.text


def test_a_function_that_fails_on_every_row_ends_the_run_and_says_where() -> None:
    scorer = FunctionBackend(FunctionReward(**section("broken"))).scorer()
    line = functions.broken.__code__.co_firstlineno + 1
    with pytest.raises(AlignpotError, match=rf"first 8 rows.*KeyError at line {line} of functions.py"):
        scorer.score(dialogues(["text"] * 20))
    scorer.close()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("no_such_package.rewards:f", "there is no module|cannot be found"),
        (f"{HERE}:no_such_name", "has no function no_such_name"),
        ("sys:exit", "there is no module sys in a file"),
    ],
)
def test_a_function_that_is_not_there_is_refused(function: str, words: str) -> None:
    backend = FunctionBackend(FunctionReward(backend="function", function=function))
    with pytest.raises(ConfigError, match=words):
        backend.check(Tokens(), ())


PAIRS = [
    {"id": f"r{i}", "prompt": f"What is {i}?", "chosen": f"answer {i}", "rejected": "other", "reference": f"answer {i}"}
    for i in range(12)
]


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Any]:
    source = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)

    def make(name: str, **keys: Any) -> Any:
        columns = {"path": str(source), "id_column": "id", "passthrough": ["reference"]}
        run = {"engine": keys.pop("engine", "plain"), "shard_rows": 4}
        sections = {"source": columns, "run": run, "metric": {"name": "explicit"}, "reward": section(name, **keys)}
        return make_config(tmp_path / keys.get("version", "work"), source, **sections)

    return make


def scored(config: Any) -> pa.Table:
    _, step, run = prepare_score(config)
    score(config, step, run)
    return Dataset.open(run.place).table(kept_only=False).sort_by("id")


def test_a_function_reads_the_columns_that_the_source_passes_on(config: Callable[..., Any]) -> None:
    table = scored(config("equals_reference"))
    assert table["reward_chosen"].to_pylist() == [1.0] * 12
    assert table["reward_rejected"].to_pylist() == [0.0] * 12
    with pytest.raises(FingerprintError, match="reward"):
        prepare_score(config("length"))


def test_a_run_that_was_stopped_goes_on_and_asks_for_nothing_again(
    config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    settings = config("noted", arguments={"folder": str(folder)}, batch_rows=3)
    commit = step.commit_part

    def fails(dataset: Any, spec: Any, table: pa.Table) -> Any:
        if table["id"][0].as_py() == "r4":
            raise TemporaryError("storage went away")
        return commit(dataset, spec, table)

    monkeypatch.setattr(step, "commit_part", fails)
    with pytest.raises(TemporaryError):
        scored(settings)
    monkeypatch.undo()
    before = {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    table = scored(settings)
    after = {path.name for path in folder.iterdir()}
    assert "r0-r0-r1" in before
    assert not any("r0" in name.split("-") for name in after)
    expected = {row["id"]: float(len(row["chosen"])) for row in PAIRS}
    assert dict(zip(table["id"].to_pylist(), table["reward_chosen"].to_pylist(), strict=True)) == expected
    assert scored(settings).equals(table)


def test_a_changed_source_file_is_another_fingerprint(
    config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "mine_to_change.py"
    file.write_text("def one(rows):\n    return [float(i) for i, _ in enumerate(rows)]\n")
    settings = config("length", function="mine_to_change:one")
    pinned, _, _ = prepare_score(settings)
    scored(settings)
    file.write_text(file.read_text().replace("float(i)", "-float(i)"))
    with pytest.raises(FingerprintError, match="digest"):
        prepare_score(settings)
    with pytest.raises(ConfigError, match="another one here than where the run began"):
        FunctionBackend(pinned.reward).scorer()
    importlib.invalidate_caches()


def test_a_column_with_the_name_of_the_answer_is_refused(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "pairs.jsonl", [{**row, "response": "x"} for row in PAIRS])
    sections = {"source": {"passthrough": ["response"]}, "metric": {"name": "explicit"}, "reward": section("length")}
    with pytest.raises(ConfigError, match="passthrough names response"):
        prepare_score(make_config(tmp_path, source, **sections))


def test_responses_of_self_play_get_their_rewards() -> None:
    reward = FunctionReward(**section("by_word", timeout_s=5))
    [stage] = annotate_stages({"": reward}, Tokens(), ANNOTATED_SCHEMA)
    apply = stage.build()
    found = apply(candidate_table([["a b", "", "none at all"], ["", ""], ["nan", "none"]]))
    apply.close()
    assert found["all_rm_scores"].to_pylist() == [[2.0, None, None], [None, None], [None, None]]
    assert found["drop_reason"].to_pylist() == [None, "empty_responses", "non_finite_reward"]


def test_a_call_takes_a_function_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in PAIRS]
    found = pipeline.score(rows, reward=functions.length)
    assert sorted(found.to_arrow()["reward_chosen"].to_pylist()) == sorted(float(len(row["chosen"])) for row in PAIRS)

    def inner(rows: list[Any]) -> list[float]:
        return [0.0 for _ in rows]

    for function in (lambda rows: [0.0 for _ in rows], inner):
        with pytest.raises(ConfigError, match="def at the top level of a module"):
            pipeline.score(rows, reward=function)


def test_the_examples_of_the_page_work() -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)

    def rewards(function: str, text: str, **keys: Any) -> list[float | None]:
        row = {"id": "r", "prompt": [], "response": [{"role": "assistant", "content": text}], **keys.pop("row", {})}
        return names[function]([row], **keys)

    assert rewards("matches", "The answer is 42.", pattern=r"answer is \d+") == [1.0]
    assert rewards("matches", "I do not know.", pattern=r"answer is \d+") == [0.0]
    assert rewards("valid_json", '```json\n{"a": 1}\n```', required=["a"]) == [1.0]
    assert rewards("valid_json", json.dumps({"a": 1}), required=["b"]) == [0.0]
    assert rewards("valid_json", "{") == [0.0]
    assert rewards("same_maths", r"It is \boxed{\frac{1}{2}}", row={"answer": "0.5"}) == [1.0]


@pytest.mark.soak
@pytest.mark.ray
def test_on_ray_the_rewards_are_those_of_the_plain_loop(config: Callable[..., Any]) -> None:
    here = scored(config("by_word", version="plain", timeout_s=5))
    on_ray = scored(config("by_word", version="ray", timeout_s=5, engine="ray", replicas=[1, 2]))
    assert on_ray.drop_columns("source_file").equals(here.drop_columns("source_file"))


@pytest.mark.soak
def test_a_round_of_self_play_with_a_function(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> None:
    given = settings(tmp_path, tiny_model_dir("llama", seed=1), tmp_path, rounds=1, train=None)
    list(self_play(parse_self_play(given | {"reward": section("length", arguments={"per": 2.0})})))
    parts = sorted((tmp_path / "run").glob("round-1/base/annotated/parts/*.parquet"))
    rows = [row for path in parts for row in pq.read_table(path).to_pylist() if row["status"] == "kept"]
    assert rows
    for row in rows:
        lengths = [len(text) / 2 if text else None for text in row["all_generated_responses"]]
        assert row["all_rm_scores"] == lengths
