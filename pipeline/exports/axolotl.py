"""Axolotl's `type: chat_template.default` for `rl: dpo` and its kin: messages, and one message for each answer.

Axolotl renders an answer after a placeholder question and searches the rendered text for the answer. It would train on
the wrong text if the template trims the answer, or if the answer's text occurs earlier. So answers are written without
white space at their ends. Empty answers, and answers so short that the text before them contains them, do not fit.
"""

from operator import itemgetter
from typing import Any, Final

from pipeline import schema
from pipeline.exports.layout import SIDES, Column, ExportFormat, Facts, Row, has_tools, many_turns, unknown_role

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
    answers = [_answer(row, side)["content"] for side in SIDES]
    if not all(answers):
        return "an empty answer"
    return "an answer too short to be found" if any(answer in _BEFORE for answer in answers) else None


def _answer(row: Row, side: str) -> dict[str, Any]:
    return {"role": "assistant", "content": str(row[side][0]["content"]).strip()}


def _columns(_: Facts) -> list[Column]:
    return [
        Column("messages", schema.MESSAGES, itemgetter(schema.PROMPT)),
        Column(schema.CHOSEN, schema.MESSAGE, lambda row: _answer(row, schema.CHOSEN)),
        Column(schema.REJECTED, schema.MESSAGE, lambda row: _answer(row, schema.REJECTED)),
    ]


AXOLOTL = ExportFormat(
    name="axolotl",
    container="jsonl",
    reads="Axolotl, rl: dpo, ipo, simpo or orpo",
    usage="datasets: [{{path: {path}/data, ds_type: json, split: train, type: chat_template.default}}]",
    held_out="test_datasets: [{{path: {path}, ds_type: json, split: {split}, type: chat_template.default}}]",
    columns=_columns,
    unfit=_unfit,
    misread=frozenset({schema.PROMPT, schema.TOOLS, "images", "margin", "label", "completion", "chat_template_kwargs"}),
)
