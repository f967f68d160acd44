"""TRL's preference format, read by its DPO, CPO (with SimPO), ORPO and other paired trainers.

Prompt and answers are message lists. Where the reference scored every pair, `ref_chosen_logps` and `ref_rejected_logps`
stand beside them (natural log, summed over answer tokens): see `pipeline.training.precomputed`.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline import schema
from pipeline.exports.layout import PAIR, ExportFormat, Facts, Row, fits_all, tools_field, tools_of

MISREAD = frozenset(
    {"image", "images", "chat_template_kwargs", "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids"}
    | {"completion", "label", "margin", "messages", "text", "ref_chosen_logps", "ref_rejected_logps", "ref_logps"}
    | {"ref_KL_logps", "KL_completion_ids", "input_ids", "attention_mask", "labels"}
)
_REFERENCE = {
    "ref_chosen_logps": schema.REFERENCE_LOGP_CHOSEN,
    "ref_rejected_logps": schema.REFERENCE_LOGP_REJECTED,
}


def _columns(facts: Facts) -> list[pa.Field]:
    turns = [pa.field(name, schema.MESSAGES) for name in (schema.PROMPT, schema.CHOSEN, schema.REJECTED)]
    reference = [pa.field(name, pa.float64()) for name in _REFERENCE] if facts.has_reference else []
    return [*turns, *reference, *tools_field(facts)]


def _convert(pairs: Sequence[Row], facts: Facts) -> list[dict[str, Any]]:
    reference = _REFERENCE if facts.has_reference else {}
    return [
        {
            PAIR: index,
            **{name: pair[name] for name in (schema.PROMPT, schema.CHOSEN, schema.REJECTED)},
            **{name: pair[source] for name, source in reference.items()},
            **tools_of(pair, facts),
        }
        for index, pair in enumerate(pairs)
    ]


TRL = ExportFormat(
    container="hf",
    reads="TRL's DPO, CPO (SimPO), ORPO trainers",
    usage='DPOTrainer(train_dataset=load_from_disk("{path}/hf")["train"], ...)',
    columns=_columns,
    convert=_convert,
    unfit=fits_all,
    misread=MISREAD,
)
