"""Messages with tool calls and reasoning: TRL's exports hold them as they were, other formats do not fit them."""

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from datasets import load_from_disk

from pipeline import schema as names
from pipeline.config import Source
from pipeline.errors import DataError
from pipeline.sources.open import read_all
from tests.exports.conftest import export, good_rows, turn, write_subset

CALL = {"role": "assistant", "content": None, "tool_calls": '[{"function":{"name":"f","arguments":{"x":1}}}]'}


@pytest.fixture
def subset(tmp_path: Path) -> str:
    rows = good_rows(4)
    rows[0]["chosen"] = [CALL, {**turn("tool", "7"), "tool_call_id": "c"}, turn("assistant", "Seven.")]
    rows[1]["rejected"] = [{**turn("assistant", "Eight."), "reasoning_content": "I guess."}]
    rows[2]["chat_template_kwargs"] = '{"enable_thinking":false}'
    pair = names.pair_schema(("tool_calls", "tool_call_id", "reasoning_content"), template_kwargs=True)
    fields = [*pair, *names.reward_fields(), *names.SUBSET_FIELDS]
    schema = pa.schema([field for field in fields if field.name != names.CONTENT_DIGEST])
    return write_subset(str(tmp_path / "subset"), rows, schema=schema)


def test_trl_gets_each_message_as_it_was(subset: str, tmp_path: Path):
    export(subset, "trl", tmp_path / "trl")
    found = load_from_disk(str(tmp_path / "trl" / "hf"))["train"]
    assert found[0]["chosen"] == [
        {"role": "assistant", "content": None, "tool_calls": json.loads(CALL["tool_calls"])},
        {"role": "tool", "content": "7", "tool_call_id": "c"},
        {"role": "assistant", "content": "Seven."},
    ]
    assert found[1]["rejected"] == [{"role": "assistant", "content": "Eight.", "reasoning_content": "I guess."}]
    assert found["chat_template_kwargs"] == [{}, {}, {"enable_thinking": False}, {}]


@pytest.mark.parametrize("folder", ["subset/hf", "subset/parquet", "trl/hf"])
def test_subset_and_export_are_read_back_as_the_same_pairs(folder: str, subset: str, tmp_path: Path):
    export(subset, "trl", tmp_path / "trl")
    fs = fsspec.filesystem("file")
    found = read_all(fs, str(tmp_path / folder), Source(path="s")).sort_by("id")
    again = read_all(fs, str(tmp_path / "subset" / "parquet"), Source(path="s")).sort_by("id")
    assert found["status"].to_pylist() == ["kept"] * 4
    assert found["id"].to_pylist() == again["id"].to_pylist()
    assert [turns[0].get("tool_calls") for turns in found["chosen"].to_pylist()].count(CALL["tool_calls"]) == 1


@pytest.mark.parametrize("to", ["openrlhf", "llama-factory", "axolotl", "nemo-rl"])
def test_formats_without_a_place_for_them_refuse_such_pairs(to: str, subset: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"chat_template_kwargs: 1 .*\n.*reasoning_content of a message: 1 .*"):
        export(subset, to, tmp_path / to)
    export(subset, to, tmp_path / to, drop_unfit=True)
