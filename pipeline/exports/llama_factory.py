"""LLaMA-Factory's sharegpt layout, as ranked pairs and as rows for KTO, with the dataset_info.json that names them.

It skips, with a mere warning, every row whose turns do not alternate from a human one to a human one: those do not fit.
A system prompt stands first in the conversation; what a tool said is an `observation`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from pipeline import schema
from pipeline.exports.layout import PAIR, ExportFormat, Facts, Row, tools_field, tools_of
from pipeline.exports.trl_kto import unpaired_order
from pipeline.exports.turns import many_turns, unknown_role

_TAGS: Final = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
_TURN: Final = pa.struct([pa.field("from", pa.string()), pa.field("value", pa.string())])
_NAME: Final = "alignpot"


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"from": _TAGS[message["role"]], "value": message["content"]}


def _unfit(row: Row) -> str | None:
    prompt = row[schema.PROMPT]
    turns = prompt[1:] if prompt and prompt[0]["role"] == "system" else prompt
    problem = unknown_role(turns, frozenset({"user", "assistant", "tool"})) or many_turns(row)
    if problem is not None:
        return problem
    if len(turns) % 2 == 0:
        return "an even number of prompt turns"
    alternate = all((turn["role"] == "assistant") == bool(i % 2) for i, turn in enumerate(turns))
    return None if alternate else "prompt turns that do not alternate"


def _columns(facts: Facts) -> list[pa.Field]:
    return [
        pa.field("conversations", pa.list_(_TURN)),
        pa.field(schema.CHOSEN, _TURN),
        pa.field(schema.REJECTED, _TURN),
        *tools_field(facts),
    ]


def _convert(pairs: Sequence[Row], facts: Facts) -> list[dict[str, Any]]:
    return [
        {
            PAIR: index,
            "conversations": [_turn(message) for message in pair[schema.PROMPT]],
            schema.CHOSEN: _turn(pair[schema.CHOSEN][0]),
            schema.REJECTED: _turn(pair[schema.REJECTED][0]),
            **_tools(pair, facts),
        }
        for index, pair in enumerate(pairs)
    ]


def _kto_columns(facts: Facts) -> list[pa.Field]:
    return [pa.field("conversations", pa.list_(_TURN)), pa.field("kto_tag", pa.bool_()), *tools_field(facts)]


def _kto_convert(pairs: Sequence[Row], facts: Facts) -> list[dict[str, Any]]:
    return [
        {
            PAIR: index,
            "conversations": [_turn(message) for message in (*pairs[index][schema.PROMPT], *pairs[index][side])],
            "kto_tag": side == schema.CHOSEN,
            **_tools(pairs[index], facts),
        }
        for index, side in unpaired_order(len(pairs))
    ]


def _tools(pair: Row, facts: Facts) -> dict[str, Any]:
    """Tools as text; the loader takes an empty text, but no null, for none."""
    return {name: value or "" for name, value in tools_of(pair, facts).items()}


def _info(columns: Mapping[str, str], facts: Facts, **more: Any) -> Mapping[str, bytes]:
    tools = {schema.TOOLS: schema.TOOLS} if facts.has_tools else {}
    entry = {"file_name": "data", "formatting": "sharegpt", **more, "columns": {**columns, **tools}}
    return {"dataset_info.json": (json.dumps({_NAME: entry}, indent=2) + "\n").encode()}


def _ranking_info(facts: Facts) -> Mapping[str, bytes]:
    columns = {"messages": "conversations", schema.CHOSEN: schema.CHOSEN, schema.REJECTED: schema.REJECTED}
    return _info(columns, facts, ranking=True)


def _kto_info(facts: Facts) -> Mapping[str, bytes]:
    return _info({"messages": "conversations", "kto_tag": "kto_tag"}, facts)


LLAMA_FACTORY = ExportFormat(
    container="jsonl",
    reads="LLaMA-Factory, stages dpo and rm",
    usage=f"dataset_dir: {{path}}, dataset: {_NAME}",
    columns=_columns,
    convert=_convert,
    unfit=_unfit,
    descriptions=_ranking_info,
)
LLAMA_FACTORY_KTO = ExportFormat(
    container="jsonl",
    reads="LLaMA-Factory, stage kto",
    usage=f"dataset_dir: {{path}}, dataset: {_NAME}",
    columns=_kto_columns,
    convert=_kto_convert,
    unfit=_unfit,
    rows_per_pair=2,
    descriptions=_kto_info,
)
