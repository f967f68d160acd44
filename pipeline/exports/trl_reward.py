"""TRL's implicit-prompt format, read by its reward trainer: whole dialogues, and a margin the loss asks for.

The margin is the explicit one of the subset (chosen minus rejected, in units of the reward model it came from).
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline import schema
from pipeline.exports.layout import PAIR, ExportFormat, Facts, Row, fits_all, tools_field, tools_of
from pipeline.exports.trl import MISREAD


def _columns(facts: Facts) -> list[pa.Field]:
    margin = [pa.field("margin", pa.float64())] if facts.has_margin else []
    turns = [pa.field(name, schema.MESSAGES) for name in (schema.CHOSEN, schema.REJECTED)]
    return [*turns, *margin, *tools_field(facts)]


def _convert(pairs: Sequence[Row], facts: Facts) -> list[dict[str, Any]]:
    return [
        {
            PAIR: index,
            schema.CHOSEN: [*pair[schema.PROMPT], *pair[schema.CHOSEN]],
            schema.REJECTED: [*pair[schema.PROMPT], *pair[schema.REJECTED]],
            **({"margin": pair[schema.MARGIN_EXPLICIT]} if facts.has_margin else {}),
            **tools_of(pair, facts),
        }
        for index, pair in enumerate(pairs)
    ]


TRL_REWARD = ExportFormat(
    container="hf",
    reads="TRL's reward trainer",
    usage='RewardTrainer(train_dataset=load_from_disk("{path}/hf")["train"], ...)',
    columns=_columns,
    convert=_convert,
    unfit=fits_all,
    misread=MISREAD | {schema.PROMPT},
)
