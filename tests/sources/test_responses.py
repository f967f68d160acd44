"""Prompts with responses, in the forms that data sets have them: one reader for all, a reason for every other row."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.config import Source
from pipeline.errors import SchemaError
from pipeline.sources.open import open_responses
from pipeline.sources.shards import plan_shards

USER = {"role": "user", "content": "Name a river."}
SYSTEM = {"role": "system", "content": "Be brief."}
TEXTS = ["The Elbe.", "The Danube, I think.", ""]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(folder: Path, rows: list[dict[str, Any]], *, as_json: bool = True, **source: Any) -> list[dict[str, Any]]:
    """The rows as the reader gives them, from a file of JSON or Parquet."""
    folder.mkdir(exist_ok=True)
    if as_json:
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    section = Source(path=str(folder), **source)
    reader, files = open_responses(LocalFileSystem(), str(folder), section)
    return pa.concat_tables([reader.read(shard) for shard in plan_shards(files, 100)]).to_pylist()


SEVERAL = {
    "texts": {"prompt": [USER], "responses": TEXTS},
    "self-play": {"prompt": [USER], "all_generated_responses": TEXTS, "all_rm_scores": [0.5, 1.5, 2.5]},
    "text of a prompt": {"question": USER["content"], "completions": TEXTS},
    "objects": {"prompt": USER["content"], "generations": [{"text": text, "model": "m"} for text in TEXTS]},
    "messages": {"prompt": [USER], "candidates": [[said(text)] for text in TEXTS]},
    "one message each": {"prompt": [USER], "outputs": [said(text) for text in TEXTS]},
    "whole dialogues": {"prompt": [USER], "responses": [[USER, said(text)] for text in TEXTS]},
}
ONE = {
    "completion": {"prompt": USER["content"], "completion": TEXTS[0]},
    "turns": {"prompt": [USER], "completion": [said(TEXTS[0])]},
    "alpaca": {"instruction": "Name a", "input": "river.", "output": TEXTS[0], "history": []},
    "messages": {"messages": [USER, said(TEXTS[0])]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": TEXTS[0]}]},
    "a score beside it": {"prompt": "Hi", "response": TEXTS[0], "score": 3.0},
    "a system prompt": {"system": SYSTEM["content"], "prompt": [USER], "answer": TEXTS[0]},
}


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("row", SEVERAL.values(), ids=SEVERAL)
def test_responses_of_a_list_are_read_in_their_order(row: dict[str, Any], as_json: bool, tmp_path: Path) -> None:
    [found] = read(tmp_path, [row], as_json=as_json)
    assert found["prompt"] == [USER]
    assert found["all_generated_responses"] == TEXTS
    assert found["all_rm_scores"] is None
    assert found["status"] == "kept"


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("row", ONE.values(), ids=ONE)
def test_a_single_response_is_a_list_of_one(row: dict[str, Any], as_json: bool, tmp_path: Path) -> None:
    [found] = read(tmp_path, [row], as_json=as_json)
    assert found["all_generated_responses"] == TEXTS[:1]
    assert found["prompt"][-1]["role"] == "user"
    assert (found["prompt"][0] == SYSTEM) == ("system" in row)


def test_earlier_rounds_and_tools_stay_with_their_prompt(tmp_path: Path) -> None:
    [found] = read(tmp_path / "a", [{"instruction": "And?", "output": "More.", "history": [["Hi", "Hello"]]}])
    assert [turn["content"] for turn in found["prompt"]] == ["Hi", "Hello", "And?"]
    tools = [{"name": "look_up"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look_up"}}]}
    prompt = [USER, call, {"role": "tool", "content": "Elbe"}]
    rows = [{"messages": [*prompt, said("It is the Elbe.")], "tools": tools}, {"messages": [USER, call]}]
    found, without_text = read(tmp_path / "b", rows)
    assert found["all_generated_responses"] == ["It is the Elbe."]
    assert json.loads(found["tools"]) == tools
    assert json.loads(found["prompt"][1]["tool_calls"]) == call["tool_calls"]
    assert without_text["drop_reason"] == "unsupported_content"


def test_rows_without_a_prompt_or_a_response_are_dropped_with_their_reason(tmp_path: Path) -> None:
    reasons = {
        "empty_prompt": {"prompt": " ", "responses": ["one"]},
        "too_few_candidates": {"prompt": "Hi", "responses": []},
        "null_field": {"prompt": "Hi", "responses": None},
        "wrong_type": {"prompt": "Hi", "responses": "one"},
        "unsupported_content": {"prompt": "Hi", "responses": ["one"], "images": ["x"]},
        "wrong_roles": {"prompt": "Hi", "responses": [[USER]]},
    }
    kept, *dropped = read(tmp_path, [{"prompt": "Hi", "responses": ["one", ""]}, *reasons.values()])
    assert kept["id"] == kept["content_digest"]
    assert [row["drop_reason"] for row in dropped] == [*reasons]


def test_ids_columns_and_conditions_are_as_for_pairs(tmp_path: Path) -> None:
    rows = [{"name": i, "q": f"Question {i}?", "response": "a", "gold": str(i), "lang": "de"} for i in range(5)]
    found = read(
        tmp_path, rows, id_column="name", columns={"prompt": "q"}, passthrough=("gold",), where='gold != "3"', limit=4
    )
    kept = [row for row in found if row["status"] == "kept"]
    assert {row["id"]: row["gold"] for row in kept} == {row["prompt"][0]["content"][9]: row["gold"] for row in kept}
    assert len(kept) in (3, 4)
    assert {row["drop_reason"] for row in found} <= {None, "filtered", "beyond_limit"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, "It holds pairs: `alignpot score`"),
        ({"messages": [USER], "chosen": "a", "rejected": "b"}, "It holds pairs: `alignpot score`"),
        ({"prompt": "Hi", "text": "a"}, "lacks response .*source.columns: {prompt: question, response: text}"),
        ({"responses": ["a"]}, "lacks prompt"),
    ],
)
def test_rows_without_responses_are_refused_with_the_remedy(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=words):
        read(tmp_path, [row])


@pytest.mark.parametrize("name", ["all_rm_scores", "status"])
def test_a_column_of_ours_cannot_be_passed_through(name: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=f"passthrough names \\['{name}'\\], which alignpot writes itself"):
        read(tmp_path, [{"prompt": "Hi", "response": "a", name: "b"}], passthrough=(name,))
