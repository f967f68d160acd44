"""One step of a flow: rows in, stages, parts out, on Ray or in a plain loop, with the same protocol for every kind.

    plan (run.json) -> shards without a part -> read | stages | commit -> row sums -> _SUCCESS.json

A step that was killed continues with the shards that have no part. A complete step does nothing.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import pyarrow as pa

from pipeline import config
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Manifest
from pipeline.data.parts import PartSpec, commit_part
from pipeline.data.place import Place
from pipeline.data.run import MINOR_VERSION, RUN_FILE, Plan, Run
from pipeline.errors import IntegrityError
from pipeline.progress import progress
from pipeline.steps.guard import guarded
from pipeline.steps.rows import without_transient
from pipeline.steps.work import AnyShard, ShardReader, ShardWork, Stage, run_plain
from pipeline.termination import raise_if_terminated


class Rows(Protocol):
    """The rows that a step works on, in shards."""

    @property
    def reader(self) -> ShardReader:
        """Reads the rows of a shard, in whatever process."""

    def plan(self) -> tuple[Mapping[str, Any], ...]:
        """The shards as run.json holds them."""

    def shards(self, stored: Sequence[Mapping[str, Any]], where: Place) -> Sequence[AnyShard]:
        """The shards that run.json at `where` holds.

        Raises:
            IntegrityError: they do not hold every row once.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is to be made.

    Attributes:
        kind: what the rows are.
        url: where they go.
        fingerprint: everything beside the version that can change a row.
        check: raises if the complete dataset must not be published.
    """

    kind: str
    url: str
    rows: Rows
    stages: Sequence[Stage]
    schema: pa.Schema
    fingerprint: Mapping[str, Any]
    config: Mapping[str, Any]
    source_format: str = "alignpot"
    check: Callable[[Run, Manifest], None] | None = None


def run_step(step: Step, settings: config.Run, storage: config.Storage) -> Dataset:
    """Make what the step describes, or what is left of it.

    Raises:
        FingerprintError: something else was begun there.
        AlignpotError: what stopped it; parts committed so far stay.
    """
    run = begin_step(step, storage)
    manifest, _ = complete_step(step, run, pending_shards(step, run), settings)
    return Dataset(run.place, manifest)


def begin_step(step: Step, storage: config.Storage) -> Run:
    """Claim the step's place, or join the run that is there.

    Raises:
        FingerprintError: something else was begun there.
    """
    plan = Plan(
        kind=step.kind,
        fingerprint={"alignpot": MINOR_VERSION, **step.fingerprint},
        config=step.config,
        shards=step.rows.plan(),
        schema=step.schema,
        source_format=step.source_format,
    )
    return Run.claim(Place.open(step.url, storage), plan)


def pending_shards(step: Step, run: Run) -> list[AnyShard]:
    """The shards that have no part yet."""
    pending = set(run.pending())
    return [shard for shard in step.rows.shards(run.plan.shards, run.place / RUN_FILE) if shard.index in pending]


def complete_step(
    step: Step, run: Run, pending: Sequence[AnyShard], settings: config.Run
) -> tuple[Manifest, list[ShardWork]]:
    """Run the stages over the pending shards, commit each, check all parts and publish the manifest.

    Returns:
        The manifest, and the work on the shards, with the PartSummary as JSON as their table (see `commit_to`).

    Raises:
        AlignpotError: what stopped it; parts committed so far stay. Also whatever `Run.finish` raises.
    """
    started = time.monotonic()
    done: list[ShardWork] = []
    if pending:
        reader, stages = step.rows.reader, [guarded(stage, settings.stage_timeout_s) for stage in step.stages]
        commit = partial(commit_to, run.place, run.plan.part_specs(shard.index for shard in pending))
        num_rows = [shard.get("rows_in", shard.get("num_rows", 0)) for shard in run.plan.shards]
        num_left = sum(num_rows[shard.index] for shard in pending)
        with progress(step.kind, sum(num_rows), done=sum(num_rows) - num_left) as count:
            if settings.engine == "plain":
                works = run_plain(reader, pending, stages, commit)
            else:
                from pipeline.on_ray.engine import run_on_ray

                works = run_on_ray(reader, pending, stages, commit, settings, dataset=run.place)
            for work in works:
                count(num_rows[work.shard])
                done.append(work)
                raise_if_terminated()
    check = None if step.check is None else partial(step.check, run)
    return run.finish({"seconds": time.monotonic() - started}, check), done


def commit_to(dataset: Place, specs: Mapping[int, PartSpec], index: int, table: pa.Table) -> pa.Table:
    """Write the part of a shard; its summary as a one-row table."""
    summary = commit_part(dataset, specs[index], without_transient(table))
    return pa.table({"summary": [json.dumps(asdict(summary))]})


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShard:
    """`num_rows` rows of a dataset or table from `first_row` on."""

    index: int
    first_row: int
    num_rows: int

    @property
    def file(self) -> str:
        """For messages."""
        return f"rows {self.first_row} to {self.first_row + self.num_rows - 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRows:
    """The kept rows of a dataset of ours, or of a table in memory, in shards of `shard_rows`.

    A table is for steps of a plain loop: it would travel with every Ray task.

    rows_out: rows that come out for each row in; None if only the work tells.
    prepare: what is done with the rows of a shard first.
    """

    rows: Dataset | pa.Table
    shard_rows: int
    rows_out: int | None = 1
    prepare: Callable[[pa.Table], pa.Table] | None = None

    @property
    def reader(self) -> "OwnRows":
        """It reads by itself."""
        return self

    @property
    def num_rows(self) -> int:
        """Rows that go in."""
        return self.rows.num_kept if isinstance(self.rows, Dataset) else int(self.rows.num_rows)

    def read(self, shard: RowShard) -> pa.Table:
        """The rows of one shard."""
        if isinstance(self.rows, Dataset):
            table = self.rows.rows(shard.first_row, shard.num_rows)
        else:
            table = self.rows.slice(shard.first_row, shard.num_rows)
        return table if self.prepare is None else self.prepare(table)

    def plan(self) -> tuple[Mapping[str, Any], ...]:
        """See Rows."""
        sizes = {
            first: min(self.shard_rows, self.num_rows - first) for first in range(0, self.num_rows, self.shard_rows)
        }
        rows_out = self.rows_out
        return tuple(
            {"first_row": first, "rows_in": size, **({} if rows_out is None else {"num_rows": size * rows_out})}
            for first, size in sizes.items()
        )

    def shards(self, stored: Sequence[Mapping[str, Any]], where: Place) -> Sequence[RowShard]:
        """See Rows."""
        planned = [RowShard(index=i, first_row=s["first_row"], num_rows=s["rows_in"]) for i, s in enumerate(stored)]
        ends = [0, *(shard.first_row + shard.num_rows for shard in planned)]
        if [*(shard.first_row for shard in planned), self.num_rows] != ends:
            raise IntegrityError(f"{where} is damaged: its shards do not hold every row once. Use another path.")
        return planned
