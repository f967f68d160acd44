"""TRL's formats: pairs, single completions, and whole dialogues for the reward trainer. All are message lists.

Messages with tool calls or reasoning are stored as JSON, which `datasets` gives back as they were.

Pairs are read by DPO, CPO (with SimPO), ORPO and other paired trainers. If the reference scored every pair, they have
`ref_chosen_logps` and `ref_rejected_logps` (natural log, summed over answer tokens): see `training.precomputed`.

The KTO trainer reads rows in order. To estimate a KL term it combines each prompt with the completion of a neighbour
row, which should belong to another prompt: `export.unpaired` orders the rows so.
"""

from operator import itemgetter
from typing import Final

import pyarrow as pa

from pipeline import schema
from pipeline.exports.layout import (
    ANSWER,
    SIDES,
    WANTED,
    Column,
    ExportFormat,
    Facts,
    chats,
    margin,
    template_kwargs,
    tools,
)

_MISREAD: Final = frozenset(
    {"image", "images", "chat_template_kwargs", "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids"}
    | {"completion", "label", "margin", "messages", "text", "ref_chosen_logps", "ref_rejected_logps", "ref_logps"}
    | {"ref_KL_logps", "KL_completion_ids", "input_ids", "attention_mask", "labels"}
)
_HELD_OUT: Final = 'eval_dataset=load_from_disk("{path}/hf")["{split}"]'


def _paired(facts: Facts) -> list[Column]:
    reference = [
        Column("ref_chosen_logps", pa.float64(), itemgetter(schema.REFERENCE_LOGP_CHOSEN)),
        Column("ref_rejected_logps", pa.float64(), itemgetter(schema.REFERENCE_LOGP_REJECTED)),
    ]
    sides = [chats(facts, name, itemgetter(name)) for name in (schema.PROMPT, *SIDES)]
    return [*sides, *(reference if facts.has_reference else []), *_of_template(facts)]


def _of_template(facts: Facts) -> list[Column]:
    return [*tools(facts), *template_kwargs(facts)]


def _kto(facts: Facts) -> list[Column]:
    return [
        chats(facts, schema.PROMPT, itemgetter(schema.PROMPT)),
        chats(facts, "completion", itemgetter(ANSWER)),
        Column("label", pa.bool_(), itemgetter(WANTED)),
        *_of_template(facts),
    ]


def _reward(facts: Facts) -> list[Column]:
    def dialogue(side: str) -> Column:
        return chats(facts, side, lambda row: [*row[schema.PROMPT], *row[side]])

    return [*map(dialogue, SIDES), *margin(facts), *_of_template(facts)]


TRL = ExportFormat(
    name="trl",
    container="hf",
    reads="TRL's DPO, CPO (SimPO), ORPO trainers",
    usage='DPOTrainer(train_dataset=load_from_disk("{path}/hf")["train"], ...)',
    held_out=_HELD_OUT,
    columns=_paired,
    misread=_MISREAD,
)
TRL_KTO = ExportFormat(
    name="trl-kto",
    container="hf",
    reads="TRL's KTO trainer",
    usage='KTOTrainer(train_dataset=load_from_disk("{path}/hf")["train"], ...)',
    held_out=_HELD_OUT,
    columns=_kto,
    misread=_MISREAD | {*SIDES},
    unpaired=True,
)
TRL_REWARD = ExportFormat(
    name="trl-reward",
    container="hf",
    reads="TRL's reward trainer",
    usage='RewardTrainer(train_dataset=load_from_disk("{path}/hf")["train"], ...)',
    held_out=_HELD_OUT,
    columns=_reward,
    misread=_MISREAD | {schema.PROMPT},
)
