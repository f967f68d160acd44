"""Tool calls, reasoning and arguments of templates: read alike from every container, with the same ids. Odd texts."""

import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from pipeline.config import Source
from pipeline.schema import messages_type, scored_schema
from pipeline.sources.inspect import inspect_source
from pipeline.sources.inspected import render
from pipeline.sources.open import open_source
from pipeline.sources.shards import plan_shards
from tests.sources import layouts as to

CALLS = [{"type": "function", "function": {"name": "look_up", "arguments": {"q": "giraffe"}}}]
OTHERS = [{"type": "function", "function": {"name": "count", "arguments": {"of": 3, "unit": "m"}}}]
P = to.pair()
ROWS = [
    {"chat_template_kwargs": None, **row}
    for row in (
        P,
        {**P, "chosen": [{"role": "assistant", "content": None, "tool_calls": CALLS}]},
        {
            **P,
            "chosen": [{"role": "assistant", "content": "", "tool_calls": OTHERS}, to.turn("tool", "6"), *P["chosen"]],
        },
        {**P, "rejected": [{**P["rejected"][0], "reasoning_content": "They do."}]},
        {**P, "chat_template_kwargs": {"enable_thinking": False}},
    )
]


def read(path):
    none = {"rewards": False, "policy_logps": False, "reference_logps": False}
    reader, files = open_source(fsspec.filesystem("file"), str(path), Source(path=str(path)), **none)
    return pa.concat_tables([reader.read(shard) for shard in plan_shards(files, 64)])


def as_json_texts(rows):
    """The rows with tool calls and arguments as JSON text, as our own tables have them."""
    changed = json.loads(json.dumps(rows))
    for row in changed:
        if row["chat_template_kwargs"]:
            row["chat_template_kwargs"] = json.dumps(row["chat_template_kwargs"])
        for turn in (*row["chosen"], *row["rejected"]):
            if "tool_calls" in turn:
                turn["tool_calls"] = json.dumps(turn["tool_calls"])
    return changed


WAYS = {
    "lines.jsonl": to.write_jsonl,
    "structs.parquet": to.write_parquet,
    "stream.arrow": to.write_arrow_stream,
    "texts.parquet": lambda path, rows: to.write_parquet(path, as_json_texts(rows)),
    "json.parquet": lambda path, rows: Dataset.from_list(rows, on_mixed_types="use_json").to_parquet(path),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("expected")
    to.write_jsonl(path / "a.jsonl", ROWS)
    return read(path)


@pytest.mark.parametrize("name", WAYS)
def test_every_container_gives_the_same_messages_and_ids(name, expected, tmp_path):
    WAYS[name](tmp_path / name, ROWS)
    table = read(tmp_path)
    names = ["id", "prompt", "chosen", "rejected", "chat_template_kwargs", "status"]
    assert table.select(names).to_pylist() == expected.select(names).to_pylist()
    assert table["status"].to_pylist() == ["kept"] * len(ROWS)
    assert len({*table["id"].to_pylist()}) == len(ROWS)
    call = table["chosen"][1].as_py()[0]
    assert (call["content"], json.loads(call["tool_calls"])) == (None, CALLS)
    assert [json.loads(text or "{}") for text in table["chat_template_kwargs"].to_pylist()][-1]
    found = inspect_source(fsspec.filesystem("file"), str(tmp_path))
    assert (found.num_pairs, found.num_with_fields) == (len(ROWS), 3)
    assert "3 with tool calls or reasoning" in render(found)


def test_a_source_without_such_fields_has_no_place_for_them(expected, tmp_path):
    for folder, write in (("lines", to.write_jsonl), ("columns", to.write_parquet)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / ("a.jsonl" if folder == "lines" else "a.parquet"), [P])
        table = read(tmp_path / folder)
        assert table.schema == scored_schema()
        assert table["id"].to_pylist() == expected["id"].to_pylist()[:1]
    fields = ("tool_calls", "reasoning_content")
    assert expected.schema.field("chosen").type == messages_type(fields)


def test_pairs_made_of_whole_columns_stand_beside_those_made_row_by_row(tmp_path):
    rows = [{**to.pair(prompt=f"Question {index}?"), "chosen": ROWS[index % 3]["chosen"]} for index in range(9)]
    to.write_parquet(tmp_path / "a.parquet", rows)
    found = read(tmp_path)["chosen"].to_pylist()
    assert [turns[0]["tool_calls"] is None for turns in found] == [True, False, False] * 3


def test_fields_that_only_later_lines_have_are_read_or_drop_their_row(tmp_path):
    thinking = {**P, "chosen": [{**P["chosen"][0], "thinking": "Hm."}]}
    late = [{**row, "prompt": [to.turn("user", "And now?")]} for row in (ROWS[1], ROWS[3], ROWS[4], thinking)]
    quoting = to.pair(chosen='Write {"tool_calls": [{}]} or "thinking" there.')
    null = {**P, "chosen": [{**P["chosen"][0], "tool_calls": None, "reasoning_content": None, "name": None}]}
    rows = [quoting, null, *(to.pair(prompt=f"Question {index}?") for index in range(70))]
    to.write_jsonl(tmp_path / "a.jsonl", rows)
    assert read(tmp_path).schema == scored_schema()
    to.write_jsonl(tmp_path / "a.jsonl", [*rows, *late])
    assert read(tmp_path)["drop_reason"].to_pylist()[71:] == [None, None, None, "late_field", "late_field"]


def test_the_message_type_of_a_column_that_holds_other_json_is_not_taken_for_messages(tmp_path):
    values = pa.array(['{"a": 1}', "{}"]).cast(pa.json_(pa.string()))
    table = pa.Table.from_pylist([P, to.pair(prompt="Why?")]).append_column("more", pa.array([[x] for x in (1, 2)]))
    pq.write_table(table.append_column("notes", values), tmp_path / "a.parquet")
    assert read(tmp_path).schema == scored_schema()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<|im_start|>user\nWhy?<|im_end|>\n", "templated already"),
        ("[INST] Why? [/INST]", "templated already"),
        (json.dumps([to.turn("user", "Why?")]), "messages as JSON text"),
        ("<image>What is shown?", "places of images"),
        ("What does [1] mean in <i>this</i> text?", None),
    ],
)
def test_texts_that_most_rows_hold_by_mistake_are_told(text, problem, tmp_path, caplog):
    rows = [{"prompt": f"{text} " if row else "Why?", "chosen": f"Yes {row}.", "rejected": "No."} for row in range(3)]
    to.write_jsonl(tmp_path / "a.jsonl", rows)
    found = inspect_source(fsspec.filesystem("file"), str(tmp_path)).problems
    assert [problem in line for line in found] == [True] * (problem is not None)
    read(tmp_path)
    assert ("JSON text" in caplog.text) == (problem == "messages as JSON text")
    to.write_jsonl(tmp_path / "a.jsonl", [{**row, "prompt": "Why?"} for row in rows[:2]] + rows[2:])
    assert not inspect_source(fsspec.filesystem("file"), str(tmp_path)).problems
