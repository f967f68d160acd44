"""TRL's unpaired format, read by its KTO trainer: a prompt, one completion, and whether it is wanted.

KTO reads rows in order and, to estimate a KL term, pairs each prompt with the completion of the row beside it, which
should belong to another prompt. So the rejected answers are moved on by half a block: wanted and unwanted rows take
turns, and the two answers of a pair lie far apart.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline import schema
from pipeline.exports.layout import PAIR, ExportFormat, Facts, Row, fits_all, tools_field, tools_of
from pipeline.exports.trl import MISREAD


def _columns(facts: Facts) -> list[pa.Field]:
    return [
        pa.field(schema.PROMPT, schema.MESSAGES),
        pa.field("completion", schema.MESSAGES),
        pa.field("label", pa.bool_()),
        *tools_field(facts),
    ]


def unpaired_order(num_pairs: int) -> list[tuple[int, str]]:
    """Pair and side of each row of a block."""
    half = num_pairs // 2
    order: list[tuple[int, str]] = []
    for index in range(num_pairs):
        order += [(index, schema.CHOSEN), ((index + half) % num_pairs, schema.REJECTED)]
    return order


def _convert(pairs: Sequence[Row], facts: Facts) -> list[dict[str, Any]]:
    return [
        {
            PAIR: index,
            schema.PROMPT: pairs[index][schema.PROMPT],
            "completion": pairs[index][side],
            "label": side == schema.CHOSEN,
            **tools_of(pairs[index], facts),
        }
        for index, side in unpaired_order(len(pairs))
    ]


TRL_KTO = ExportFormat(
    container="hf",
    reads="TRL's KTO trainer",
    usage='KTOTrainer(train_dataset=load_from_disk("{path}/hf")["train"], ...)',
    columns=_columns,
    convert=_convert,
    unfit=fits_all,
    misread=MISREAD | {schema.CHOSEN, schema.REJECTED},
    rows_per_pair=2,
)
