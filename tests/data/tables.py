"""Small scored tables, and a place to put them: what the tests of this folder share."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline import schema as names
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SCORED
from pipeline.data.parts import PartSpec, commit_part
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run

FINGERPRINT = {"policy": {"model": "tiny", "revision": "abc"}, "tokens": {"max_length": 2048}}
SCHEMA = names.scored_schema([pa.field("origin", pa.string())])


def scored_table(
    ids: Sequence[str],
    *,
    digests: Sequence[str] | None = None,
    dropped: Collection[int] = (),
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> pa.Table:
    """A part with one row per id; rows at the positions `dropped` were dropped."""

    def turn(role: str, number: str) -> list[dict[str, str]]:
        return [{"role": role, "content": f"{role} text {number} ✓"}]

    count = len(ids)
    own: dict[str, Sequence[Any]] = {
        names.ID: list(ids),
        names.CONTENT_DIGEST: list(digests) if digests is not None else [f"digest-of-{each}" for each in ids],
        names.PROMPT: [turn("user", each) for each in ids],
        names.CHOSEN: [turn("assistant", each) for each in ids],
        names.REJECTED: [turn("assistant", each + "!") for each in ids],
        names.REWARD_CHOSEN: [None if i in dropped else i / 7 for i in range(count)],
        names.REWARDS_ALL: [[0.5, float(i)] if i % 3 else None for i in range(count)],
        names.NUM_TOKENS_PROMPT: [3] * count,
        names.NUM_TOKENS_CHOSEN: [5] * count,
        names.NUM_TOKENS_REJECTED: [7] * count,
        names.STATUS: [names.DROPPED if i in dropped else names.KEPT for i in range(count)],
        names.DROP_STAGE: ["tokenise" if i in dropped else None for i in range(count)],
        names.DROP_REASON: ["prompt_too_long" if i in dropped else None for i in range(count)],
        "origin": [f"here {each}" for each in ids],
        **(columns or {}),
    }
    return pa.table({field.name: own.get(field.name, [None] * count) for field in SCHEMA}, schema=SCHEMA)


def plan_for(sizes: Sequence[int], **changes: Any) -> Plan:
    """A plan with shards of these sizes."""
    plan = Plan(
        kind=SCORED,
        fingerprint=FINGERPRINT,
        shards=tuple({"file": "a.parquet", "start": i, "num_rows": size} for i, size in enumerate(sizes)),
        schema=SCHEMA,
        config={"scored": "somewhere"},
        version="0.1.0",
        source_format="messages",
    )
    return dataclasses.replace(plan, **changes)


def write_dataset(place: Place, tables: Sequence[pa.Table]) -> Dataset:
    """A complete scored dataset with these tables as parts."""
    run = Run.claim(place, plan_for([table.num_rows for table in tables]))
    for index, table in enumerate(tables):
        commit_part(place, spec_of(run.plan, index), table)
    return Dataset(place, run.finish({}))


def spec_of(plan: Plan, index: int) -> PartSpec:
    """What a worker needs to commit a part."""
    return plan.part_specs([index])[index]
