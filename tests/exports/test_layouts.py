"""The layouts that other trainers document, key by key: what their loaders index is there and of the right type."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from tests.exports.conftest import SYSTEM, TOOLS, export, good_rows, json_rows

PAIRS = {row["id"]: row for row in good_rows()}


def is_messages(value: Any, *, role: str = "role", content: str = "content") -> bool:
    return bool(value) and all(
        isinstance(turn, dict) and {*turn} == {role, content} and all(isinstance(v, str) for v in turn.values())
        for turn in value
    )


def test_openrlhf_has_message_lists_that_join_and_a_margin(exported: Callable[..., Path]):
    for row in json_rows(exported("openrlhf")):
        assert is_messages(row["prompt"] + row["chosen"])
        assert is_messages(row["prompt"] + row["rejected"])
        assert [row[name] for name in ("prompt", "chosen", "rejected")] == [
            PAIRS[row["id"]][name] for name in ("prompt", "chosen", "rejected")
        ]
        assert isinstance(row["margin"], float)


def test_llama_factory_alternates_from_human_to_human_and_is_named(exported: Callable[..., Path]):
    output = exported("llama-factory")
    entry = json.loads((output / "dataset_info.json").read_text())["alignpot"]
    assert entry == {
        "file_name": "data",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    }
    rows = json_rows(output)
    for row in rows:
        turns = [turn["from"] for turn in row["conversations"]]
        turns = turns[1:] if turns[0] == "system" else turns
        assert turns == ["human", "gpt"] * (len(turns) // 2) + ["human"]
        for side in ("chosen", "rejected"):
            assert row[side] == {"from": "gpt", "value": PAIRS[row["id"]][side][0]["content"]}
    assert rows[1]["conversations"][0] == {"from": "system", "value": SYSTEM["content"]}
    assert [turn["from"] for turn in rows[2]["conversations"]] == ["human", "gpt", "human"]


def test_llama_factory_kto_ends_with_the_answer_and_its_tag(exported: Callable[..., Path]):
    output = exported("llama-factory-kto")
    entry = json.loads((output / "dataset_info.json").read_text())["alignpot"]
    assert entry["columns"] == {"messages": "conversations", "kto_tag": "kto_tag"}
    assert "ranking" not in entry
    rows = json_rows(output)
    assert [row["kto_tag"] for row in rows] == [True, False] * 12
    for row in rows:
        side = "chosen" if row["kto_tag"] else "rejected"
        assert row["conversations"][-1] == {"from": "gpt", "value": PAIRS[row["id"]][side][0]["content"]}


def test_llama_factory_has_tools_as_text(odd_subset: str, tmp_path: Path):
    export(odd_subset, "llama-factory", tmp_path, drop_unfit=True)
    tools = {row["id"]: row["tools"] for row in json_rows(tmp_path)}
    assert tools.pop("with-tools") == TOOLS
    assert {*tools.values()} == {""}
    assert json.loads((tmp_path / "dataset_info.json").read_text())["alignpot"]["columns"]["tools"] == "tools"


def test_axolotl_has_messages_and_one_trimmed_message_a_side(exported: Callable[..., Path]):
    for row in json_rows(exported("axolotl")):
        assert is_messages(row["messages"])
        assert row["messages"] == PAIRS[row["id"]]["prompt"]
        for side in ("chosen", "rejected"):
            assert row[side] == {"role": "assistant", "content": PAIRS[row["id"]][side][0]["content"].strip()}
        assert "prompt" not in row


def test_nemo_rl_has_ranked_completions_with_rewards(exported: Callable[..., Path]):
    for row in json_rows(exported("nemo-rl")):
        pair = PAIRS[row["id"]]
        assert row["context"] == pair["prompt"]
        assert row["completions"] == [
            {"rank": 0, "completion": pair["chosen"], "reward": pair["reward_chosen"]},
            {"rank": 1, "completion": pair["rejected"], "reward": pair["reward_rejected"]},
        ]


@pytest.mark.parametrize("to", ["openrlhf", "llama-factory", "llama-factory-kto", "axolotl", "nemo-rl"])
def test_datasets_reads_the_lines_as_they_were_written(to: str, exported: Callable[..., Path], tmp_path: Path):
    output = exported(to, rows_per_file=5)
    files = {"data_files": str(output / "data" / "*.jsonl")}
    loaded = load_dataset("json", **files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == json_rows(output)
