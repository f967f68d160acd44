"""NeMo-RL's preference format for DPO and reward models: a context, and completions by rank, the best being 0."""

from operator import itemgetter
from typing import Any

import pyarrow as pa

from pipeline import schema
from pipeline.exports.layout import Column, ExportFormat, Facts, Row, has_tools

_REWARD_OF = {schema.CHOSEN: schema.REWARD_CHOSEN, schema.REJECTED: schema.REWARD_REJECTED}


def _columns(facts: Facts) -> list[Column]:
    reward = [pa.field("reward", pa.float64())] if facts.has_rewards else []
    completion = pa.struct([pa.field("rank", pa.int64()), pa.field("completion", schema.MESSAGES), *reward])

    def completions(pair: Row) -> list[dict[str, Any]]:
        return [
            {"rank": rank, "completion": pair[side], **({"reward": pair[column]} if reward else {})}
            for rank, (side, column) in enumerate(_REWARD_OF.items())
        ]

    return [
        Column("context", schema.MESSAGES, itemgetter(schema.PROMPT)),
        Column("completions", pa.list_(completion), completions),
    ]


NEMO_RL = ExportFormat(
    name="nemo-rl",
    container="jsonl",
    reads="NeMo-RL's DPO and reward model",
    usage="data.train: {{dataset_name: PreferenceDataset, data_path: {path}/data/train-*.jsonl, split: train}}",
    held_out="data.validation: {{dataset_name: PreferenceDataset, data_path: {path}/data/{split}-*.jsonl, "
    "split: train}}",
    columns=_columns,
    unfit=has_tools,
    misread=frozenset({"task_name", "dataset"}),
)
