"""OpenRLHF's preference format: message lists that it joins and renders itself. Its reward model reads `margin`."""

from pipeline import schema
from pipeline.exports.layout import SIDES, ExportFormat, has_tools, margin, messages

OPENRLHF = ExportFormat(
    name="openrlhf",
    container="jsonl",
    reads="OpenRLHF's DPO and reward trainers",
    usage="--data.dataset {path}/data --data.prompt_key prompt --data.apply_chat_template",
    held_out="--eval.dataset {path} --eval.split {split}",
    columns=lambda facts: [*messages(schema.PROMPT, *SIDES), *margin(facts)],
    unfit=has_tools,
    misread=frozenset({"margin"}),
)
