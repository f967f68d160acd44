"""OpenRLHF's preference format: message lists that it joins and renders itself. Its reward model reads `margin`."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline import schema
from pipeline.exports.layout import PAIR, ExportFormat, Facts, Row
from pipeline.exports.turns import has_tools


def _columns(facts: Facts) -> list[pa.Field]:
    margin = [pa.field("margin", pa.float64())] if facts.has_margin else []
    turns = [pa.field(name, schema.MESSAGES) for name in (schema.PROMPT, schema.CHOSEN, schema.REJECTED)]
    return [*turns, *margin]


def _convert(pairs: Sequence[Row], facts: Facts) -> list[dict[str, Any]]:
    return [
        {
            PAIR: index,
            **{name: pair[name] for name in (schema.PROMPT, schema.CHOSEN, schema.REJECTED)},
            **({"margin": pair[schema.MARGIN_EXPLICIT]} if facts.has_margin else {}),
        }
        for index, pair in enumerate(pairs)
    ]


OPENRLHF = ExportFormat(
    container="jsonl",
    reads="OpenRLHF's DPO and reward trainers",
    usage="--data.dataset {path}/data --data.prompt_key prompt --data.apply_chat_template",
    columns=_columns,
    convert=_convert,
    unfit=has_tools,
    misread=frozenset({"margin"}),
)
