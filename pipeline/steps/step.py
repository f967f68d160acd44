"""One step of a flow: rows in, stages, parts out, on Ray or in a plain loop, with the same protocol for every kind.

    plan (run.json) -> shards without a part -> read | stages | commit -> row sums -> _SUCCESS.json

A step that was killed continues with the shards that have no part. A complete step does nothing.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import config
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Manifest
from pipeline.data.parts import PartSpec, commit_part
from pipeline.data.place import Place
from pipeline.data.run import MINOR_VERSION, RUN_FILE, Plan, Run
from pipeline.progress import progress
from pipeline.steps.guard import guarded
from pipeline.steps.placed import layout_here, models_of, take_turns
from pipeline.steps.rows import without_transient
from pipeline.steps.shards import StepRows, rows_in
from pipeline.steps.totals import Totals
from pipeline.steps.work import ShardWork, Stage, read_shard, run_plain
from pipeline.termination import raise_if_terminated

WAVE_SHARDS: Final = 16_384
"""Shards that an engine is given at once. Ray Data holds up to 40 KiB for each in the driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is to be made.

    Attributes:
        kind: what the rows are.
        url: where they go.
        fingerprint: everything beside the version that can change a row.
        check: raises if the complete dataset must not be published.
        extra: what the manifest says beside.
    """

    kind: str
    url: str
    rows: StepRows
    stages: Sequence[Stage]
    schema: pa.Schema
    fingerprint: Mapping[str, Any]
    config: Mapping[str, Any]
    source_format: str = "alignpot"
    check: Callable[[Run, Manifest], None] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def run_step(step: Step, settings: config.Run, storage: config.Storage) -> Dataset:
    """Make what the step describes, or what is left of it.

    Raises a FingerprintError if something else was begun there, else the AlignpotError that stopped it. Parts committed
    so far stay.
    """
    run = begin_step(step, storage)
    manifest, _ = complete_step(step, run, pending_shards(step, run), settings)
    return Dataset(run.place, manifest)


def begin_step(step: Step, storage: config.Storage) -> Run:
    """Claim the step's place, or join the run that is there.

    Raises a FingerprintError if something else was begun there.
    """
    return Run.claim(Place.open(step.url, storage), plan_of(step))


def plan_of(step: Step) -> Plan:
    """The plan of a step that begins."""
    return Plan(
        kind=step.kind,
        fingerprint={"alignpot": MINOR_VERSION, **step.fingerprint},
        config=step.config,
        shards=step.rows.plan(),
        schema=step.schema,
        source_format=step.source_format,
    )


def pending_shards(step: Step, run: Run) -> NDArray[np.int64]:
    """Indices of the shards that have no part yet. Raises an IntegrityError if run.json is damaged."""
    step.rows.check(run.plan.shards, run.place / RUN_FILE)
    return run.pending()


def first_rows(step: Step, run: Run, pending: NDArray[np.int64], num_rows: int) -> list[pa.Table]:
    """What is read from the first of these shards, until it is so many rows."""
    tables: list[pa.Table] = []
    for index in pending.tolist():
        [shard] = step.rows.shards(run.plan.shards, [index])
        tables.append(read_shard(step.rows.reader, shard).table)
        if sum(table.num_rows for table in tables) >= num_rows:
            break
    return tables


def complete_step(step: Step, run: Run, pending: NDArray[np.int64], settings: config.Run) -> tuple[Manifest, Totals]:
    """Run the stages over the pending shards, commit each, check all parts and publish the manifest.

    Shards go in waves, of which each loads the models anew: an engine holds something for every shard that it is given.

    Raises the AlignpotError that stopped it; parts committed so far stay. Also raises as `Run.finish`.
    """
    started = time.monotonic()
    totals = Totals()
    stages = [guarded(stage, settings.stage_timeout_s) for stage in step.stages]
    num_rows = rows_in(run.plan.shards)
    num_all = int(num_rows.sum())
    with progress(step.kind, num_all, done=num_all - int(num_rows[pending].sum())) as count:
        engine: Callable[..., Iterator[ShardWork]] = run_plain
        if len(pending) and settings.on_ray(runs_models=any(stage.model is not None for stage in stages)):
            from pipeline.on_ray.engine import run_on_ray

            engine = partial(run_on_ray, run=settings, dataset=run.place)
        elif len(pending) and take_turns(stages, layout_here(models_of(stages), settings)):
            engine = partial(run_plain, turn_shards=settings.turn_shards)
        for first in range(0, len(pending), WAVE_SHARDS):
            indices = pending[first : first + WAVE_SHARDS].tolist()
            wave = step.rows.shards(run.plan.shards, indices)
            commit = partial(commit_to, run.place, run.plan.part_specs(indices))
            # No name for the generator: an error in the loop must end it at once, with what it holds.
            for work in engine(step.rows.reader, wave, stages, commit):
                totals.add(work)
                count(int(num_rows[work.shard]), totals.figures())
                raise_if_terminated()
            totals.end_wave()
    check = None if step.check is None else partial(step.check, run)
    took = {"seconds": time.monotonic() - started, "rows": int(num_rows[pending].sum()), "tokens": totals.num_tokens}
    return run.finish({**step.extra, **took}, check), totals


def commit_to(dataset: Place, specs: Mapping[int, PartSpec], index: int, table: pa.Table) -> pa.Table:
    """Write the part of a shard; its summary as a one-row table."""
    summary = commit_part(dataset, specs[index], without_transient(table))
    return pa.table({"summary": [json.dumps(asdict(summary))]})
