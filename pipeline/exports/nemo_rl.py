"""NeMo-RL's preference format for DPO and reward models: a context, and completions by rank, the best being 0."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline import schema
from pipeline.exports.layout import PAIR, ExportFormat, Facts, Row
from pipeline.exports.turns import has_tools


def _columns(facts: Facts) -> list[pa.Field]:
    reward = [pa.field("reward", pa.float64())] if facts.has_rewards else []
    completion = pa.struct([pa.field("rank", pa.int64()), pa.field("completion", schema.MESSAGES), *reward])
    return [pa.field("context", schema.MESSAGES), pa.field("completions", pa.list_(completion))]


def _convert(pairs: Sequence[Row], facts: Facts) -> list[dict[str, Any]]:
    sides = [(schema.CHOSEN, schema.REWARD_CHOSEN), (schema.REJECTED, schema.REWARD_REJECTED)]
    return [
        {
            PAIR: index,
            "context": pair[schema.PROMPT],
            "completions": [
                {"rank": rank, "completion": pair[side], **({"reward": pair[reward]} if facts.has_rewards else {})}
                for rank, (side, reward) in enumerate(sides)
            ],
        }
        for index, pair in enumerate(pairs)
    ]


NEMO_RL = ExportFormat(
    container="jsonl",
    reads="NeMo-RL's DPO and reward model",
    usage="data.train: {{dataset_name: PreferenceDataset, data_path: {path}/data/*.jsonl, split: train}}",
    columns=_columns,
    convert=_convert,
    unfit=has_tools,
    misread=frozenset({"task_name", "dataset"}),
)
