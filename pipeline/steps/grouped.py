"""Shards that hold the rows of a prompt together, where the source has them apart (`run.group_prompts`).

    source -> pairs/, a dataset below the scored path -> shards of its rows, by prompt -> the scored dataset

Models share work among the rows of one shard. Only the prompts are read to plan. A plan that is there decides, whatever
the config says now.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Config
from pipeline.data.dataset import Dataset, Positions
from pipeline.data.manifest import PAIRS
from pipeline.data.run import Run
from pipeline.metrics.columns import single_array
from pipeline.rewards.registry import reward_backends
from pipeline.selection.per_prompt import prompt_keys
from pipeline.steps.shards import OwnRows, PickedRows, SourceRows
from pipeline.steps.step import Step, run_step

_PART_ROWS = 256
"""Rows of a part of the pairs, at most. A row whose prompt stands elsewhere costs the reading of one part."""


def grouped(config: Config, step: Step) -> Step:
    """The step over its rows by prompt. First they are written as a dataset of ours. Raises as `run_step`."""
    rows = step.rows
    assert isinstance(rows, (SourceRows, OwnRows))  # noqa: S101 - what score reads
    leads = [schema.lead_columns(name) for name, reward in reward_backends(config.members).items() if reward.compares]
    made = {column for columns in leads for column in columns}
    pairs = replace(
        step,
        kind=PAIRS,
        url=f"{step.url.rstrip('/')}/{PAIRS}",
        rows=replace(rows, shard_rows=min(rows.shard_rows, _PART_ROWS)),
        stages=[],
        schema=pa.schema([field for field in step.schema if field.name not in made]),
        check=None,
    )
    dataset = run_step(pairs, config.run, config.storage)
    picked = PickedRows(rows=dataset, positions=by_prompt(dataset), shard_rows=rows.shard_rows, kept_only=False)
    return replace(step, rows=picked)


def as_planned(step: Step, run: Run) -> Step:
    """The step over the rows that the plan of its run names."""
    if not len(run.plan.shards) or "rows" not in run.plan.shards[0]:
        return step
    pairs = Dataset.open(run.place / PAIRS, PAIRS)
    return replace(step, rows=PickedRows(rows=pairs, positions=np.zeros(0, np.int64), shard_rows=1, kept_only=False))


def by_prompt(dataset: Dataset) -> Positions:
    """Positions of all rows, dropped ones too: those of a prompt together, where the first of them stands.

    It takes some 60 bytes a row. Two prompts of one hash would stand together too, which does no harm.
    """
    hashes, kept = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.bool_)]
    for table in dataset.tables([schema.PROMPT, schema.STATUS], kept_only=False):
        hashes.append(prompt_keys(single_array(table, schema.PROMPT))[:, 0].copy())
        kept.append(pc.equal(table[schema.STATUS], schema.KEPT).to_numpy())
    _, firsts, prompts = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)
    is_kept = np.concatenate(kept)
    places = np.where(is_kept, firsts[prompts], np.arange(is_kept.size))
    return np.argsort(places, kind="stable").astype(np.int64)
