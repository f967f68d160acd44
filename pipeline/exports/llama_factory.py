"""LLaMA-Factory's sharegpt layout, as ranked pairs and as rows for KTO, with the dataset_info.json that names them.

LLaMA-Factory skips every row whose turns do not alternate, from a human one to a human one, and only warns: such pairs
do not fit. A system prompt is the first turn of the conversation; the role of a tool is `observation`.
"""

import json
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any, Final

import pyarrow as pa

from pipeline import schema
from pipeline.exports.layout import (
    ANSWER,
    WANTED,
    Column,
    ExportFormat,
    Facts,
    Row,
    has_fields,
    many_turns,
    tools,
    unknown_role,
)

_TAGS: Final = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
_TURN: Final = pa.struct([pa.field("from", pa.string()), pa.field("value", pa.string())])
_NAME: Final = "alignpot"
_ONE: Final = "-00000-of-00001.jsonl"


def _turns(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"from": _TAGS[message["role"]], "value": message["content"]} for message in messages]


def _unfit(row: Row) -> str | None:
    prompt = row[schema.PROMPT]
    turns = prompt[1:] if prompt and prompt[0]["role"] == "system" else prompt
    problem = has_fields(row) or unknown_role(turns, frozenset({"user", "assistant", "tool"})) or many_turns(row)
    if problem is not None:
        return problem
    if len(turns) % 2 == 0:
        return "an even number of prompt turns"
    alternate = all((turn["role"] == "assistant") == bool(i % 2) for i, turn in enumerate(turns))
    return None if alternate else "prompt turns that do not alternate"


def _ranking(facts: Facts) -> list[Column]:
    return [
        Column("conversations", pa.list_(_TURN), lambda row: _turns(row[schema.PROMPT])),
        Column(schema.CHOSEN, _TURN, lambda row: _turns(row[schema.CHOSEN])[0]),
        Column(schema.REJECTED, _TURN, lambda row: _turns(row[schema.REJECTED])[0]),
        *tools(facts, absent=""),  # the loader takes an empty text, but no null
    ]


def _kto(facts: Facts) -> list[Column]:
    return [
        Column("conversations", pa.list_(_TURN), lambda row: _turns([*row[schema.PROMPT], *row[ANSWER]])),
        Column("kto_tag", pa.bool_(), itemgetter(WANTED)),
        *tools(facts, absent=""),
    ]


def _info(facts: Facts, columns: Iterable[str], **more: Any) -> Mapping[str, bytes]:
    named = {"messages": "conversations", **{name: name for name in columns}}
    if facts.has_tools:
        named[schema.TOOLS] = schema.TOOLS
    # A folder is read as one split, so several splits are named file by file.
    files = {_NAME: f"data/{schema.TRAIN}{_ONE}" if facts.held_out else "data"}
    files |= {f"{_NAME}_{split}": f"data/{split}{_ONE}" for split in facts.held_out}
    entries = {
        name: {"file_name": file, "formatting": "sharegpt", **more, "columns": named} for name, file in files.items()
    }
    return {"dataset_info.json": (json.dumps(entries, indent=2) + "\n").encode()}


LLAMA_FACTORY = ExportFormat(
    name="llama-factory",
    container="jsonl",
    reads="LLaMA-Factory, stages dpo and rm",
    usage=f"dataset_dir: {{path}}, dataset: {_NAME}",
    held_out=f"eval_dataset: {_NAME}_{{split}}",
    one_file=True,
    columns=_ranking,
    unfit=_unfit,
    descriptions=lambda facts: _info(facts, (schema.CHOSEN, schema.REJECTED), ranking=True),
)
LLAMA_FACTORY_KTO = ExportFormat(
    name="llama-factory-kto",
    container="jsonl",
    reads="LLaMA-Factory, stage kto",
    usage=f"dataset_dir: {{path}}, dataset: {_NAME}",
    held_out=f"eval_dataset: {_NAME}_{{split}}",
    one_file=True,
    columns=_kto,
    unfit=_unfit,
    unpaired=True,
    descriptions=lambda facts: _info(facts, ("kto_tag",)),
)
