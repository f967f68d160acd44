"""Axolotl's `type: chat_template.default` for `rl: dpo` and its kin: messages, and one message each for the answers.

Axolotl renders an answer after a stand-in question and looks for its text in what the template made of it. It would
train on the wrong text where the template trims the answer, or where the answer's text occurs earlier: so answers are
written without white space at their ends, and those that are empty or as short as the words around them do not fit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from pipeline import schema
from pipeline.exports.layout import PAIR, ExportFormat, Facts, Row
from pipeline.exports.turns import has_tools, many_turns, unknown_role

_ROLES: Final = frozenset({"user", "assistant", "system", "tool"})
# What common templates put before the answer, default system prompts included.
_BEFORE: Final = (
    "<|begin_of_text|><|im_start|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 01 Jan 2025\n\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|eot_id|><bos><start_of_turn>user\n[[dummy_message]]<end_of_turn>\n<start_of_turn>model\n<|user|><|assistant|>"
    "<s>[INST] [/INST] <|im_start|>assistant\n\n<think>\n\n</think>\n\n"
)


def _unfit(row: Row) -> str | None:
    problem = has_tools(row) or unknown_role(row[schema.PROMPT], _ROLES) or many_turns(row)
    if problem is not None:
        return problem
    answers = [_text(row[side][0]) for side in (schema.CHOSEN, schema.REJECTED)]
    if not all(answers):
        return "an empty answer"
    return "an answer too short to be found" if any(answer in _BEFORE for answer in answers) else None


def _text(message: Mapping[str, Any]) -> str:
    return str(message["content"]).strip()


def _columns(facts: Facts) -> list[pa.Field]:
    del facts
    answers = [pa.field(name, schema.MESSAGE) for name in (schema.CHOSEN, schema.REJECTED)]
    return [pa.field("messages", schema.MESSAGES), *answers]


def _convert(pairs: Sequence[Row], facts: Facts) -> list[dict[str, Any]]:
    del facts
    return [
        {
            PAIR: index,
            "messages": pair[schema.PROMPT],
            **{
                side: {"role": "assistant", "content": _text(pair[side][0])}
                for side in (schema.CHOSEN, schema.REJECTED)
            },
        }
        for index, pair in enumerate(pairs)
    ]


AXOLOTL = ExportFormat(
    container="jsonl",
    reads="Axolotl, rl: dpo, ipo, simpo or orpo",
    usage="datasets: [{{path: {path}/data, ds_type: json, split: train, type: chat_template.default}}]",
    columns=_columns,
    convert=_convert,
    unfit=_unfit,
    misread=frozenset({schema.PROMPT, schema.TOOLS, "images", "margin", "label", "completion", "chat_template_kwargs"}),
)
