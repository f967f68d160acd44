"""One step of a flow: rows in, stages, parts out, on Ray or in a plain loop, with the same protocol for every kind.

    plan (run.json) -> shards without a part -> read | stages | commit -> row sums -> _SUCCESS.json

Killed anywhere, the same step goes on with the shards that have no part; complete, it does nothing.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import fsspec
import pyarrow as pa

from pipeline import __version__
from pipeline.config import Replicas, Run, Storage
from pipeline.errors import IntegrityError
from pipeline.flows.deaths import Deaths
from pipeline.progress import progress
from pipeline.stages.guard import guarded
from pipeline.stages.plan import Stage
from pipeline.stages.rows import without_transient
from pipeline.stages.work import AnyShard, ShardReader, ShardWork, score_plain
from pipeline.storage.filesystem import display, open_filesystem
from pipeline.storage.manifest import Manifest, finish_run, load_manifest
from pipeline.storage.parts import commit_part, committed_parts, digest
from pipeline.storage.runs import RUN_FILE, PartSpec, RunPlan, begin_run
from pipeline.storage.scored import ScoredDataset
from pipeline.termination import raise_if_terminated

# Versions of one minor number give the same rows, so a step may be resumed with either.
MINOR_VERSION: Final = ".".join(__version__.split(".")[:2])


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitTo:
    """Commits parts to the dataset of a plan; travels to whatever process runs the last stage."""

    fs: fsspec.AbstractFileSystem
    root: str
    specs: Mapping[int, PartSpec]

    def __call__(self, index: int, table: pa.Table) -> pa.Table:
        """Write the part of a shard; its summary as a one-row table."""
        summary = commit_part(self.fs, self.root, self.specs[index], without_transient(table))
        return pa.table({"summary": [json.dumps(asdict(summary))]})


def summary_of(work: ShardWork) -> dict[str, Any]:
    """What `CommitTo` said of a part, which is a PartSummary."""
    summary: dict[str, Any] = json.loads(work.table.column("summary")[0].as_py())
    return summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a dataset lies and what its run is: file system, root and plan."""

    fs: fsspec.AbstractFileSystem
    root: str
    plan: RunPlan


def work_on(
    place: Place, reader: ShardReader, pending: Sequence[AnyShard], stages: Sequence[Stage], run: Run
) -> Iterator[ShardWork]:
    """Run the stages over the shards that have no part yet and commit each; yields them as they are committed.

    Raises:
        AlignpotError: what stopped it; parts committed so far stay.
    """
    if not pending:
        return
    specs = place.plan.part_specs(shard.index for shard in pending)
    commit = CommitTo(fs=place.fs, root=place.root, specs=specs)
    num_rows = [shard.get("rows_in", shard.get("num_rows", 0)) for shard in place.plan.shards]
    num_left = sum(num_rows[shard.index] for shard in pending)
    stages = [guarded(stage, run.stage_timeout_s) for stage in stages]
    with progress(place.plan.kind, sum(num_rows), done=sum(num_rows) - num_left) as count:
        for work in _on_engine(reader, pending, stages, commit, run):
            count(num_rows[work.shard])
            yield work
            raise_if_terminated()


def _on_engine(
    reader: ShardReader, pending: Sequence[AnyShard], stages: Sequence[Stage], commit: CommitTo, run: Run
) -> Iterator[ShardWork]:
    if run.engine == "plain":
        yield from score_plain(reader, pending, stages, commit)
        return
    from pipeline.flows.on_ray import ScoreJob, score_on_ray
    from pipeline.flows.session import ray_session

    models: list[Replicas] = [stage.model for stage in stages if stage.model is not None]
    with ray_session(run, models):
        deaths = Deaths(fs=commit.fs, root=commit.root)
        job = ScoreJob(reader=reader, stages=tuple(stages), commit=commit, run=run, deaths=deaths)
        yield from score_on_ray(job, pending)


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
class DatasetReader:
    """The kept rows of a dataset of ours, shard by shard."""

    dataset: ScoredDataset

    def read(self, shard: RowShard) -> pa.Table:
        """The rows of one shard."""
        return self.dataset.rows(shard.first_row, shard.num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReader:
    """A table in memory, shard by shard; for steps of a plain loop, for it would travel with every Ray task."""

    table: pa.Table

    def read(self, shard: RowShard) -> pa.Table:
        """The rows of one shard."""
        return self.table.slice(shard.first_row, shard.num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is to be made.

    Attributes:
        kind: what the rows are.
        url: where they go.
        reader: gives the rows that the stages work on; `num_rows` of them, in shards of `shard_rows`.
        fingerprint: everything beside the version that can move a row.
        rows_out: rows that come out for each row in; None if only the work tells.
    """

    kind: str
    url: str
    reader: DatasetReader | TableReader
    num_rows: int
    shard_rows: int
    stages: Sequence[Stage]
    schema: pa.Schema
    fingerprint: Mapping[str, Any]
    config: Mapping[str, Any]
    rows_out: int | None = 1


def run_step(step: Step, run: Run, storage: Storage) -> Manifest:
    """Make what the step describes, or what is left of it.

    Raises:
        FingerprintError: something else was begun there.
        AlignpotError: what stopped it; parts committed so far stay.
    """
    started = time.monotonic()
    fs, root = open_filesystem(step.url, storage)
    starts = range(0, step.num_rows, step.shard_rows)
    shards = [
        RowShard(index=i, first_row=first, num_rows=min(step.shard_rows, step.num_rows - first))
        for i, first in enumerate(starts)
    ]
    wanted = RunPlan(
        version=__version__,
        fingerprint={"alignpot": MINOR_VERSION, **step.fingerprint},
        config=step.config,
        shards=tuple(_stored(shard, step.rows_out) for shard in shards),
        schema=step.schema,
        source_format="alignpot",
        kind=step.kind,
    )
    plan = begin_run(fs, root, wanted)
    planned = [
        RowShard(index=i, first_row=shard["first_row"], num_rows=shard["rows_in"])
        for i, shard in enumerate(plan.shards)
    ]
    ends = [0, *(shard.first_row + shard.num_rows for shard in planned)]
    if [*(shard.first_row for shard in planned), step.num_rows] != ends:
        where = display(fs, f"{root}/{RUN_FILE}")
        raise IntegrityError(f"{where} is damaged: its shards do not hold every row once. Use another path.")
    done = committed_parts(fs, root, plan)
    pending = [shard for shard in planned if shard.index not in done]
    for _ in work_on(Place(fs=fs, root=root, plan=plan), step.reader, pending, step.stages, run):
        pass
    return finish_run(fs, root, plan, {"seconds": time.monotonic() - started})


def open_step(url: str, kind: str, storage: Storage) -> ScoredDataset:
    """A complete dataset of that kind.

    Raises:
        SourceError: there is none.
    """
    fs, root = open_filesystem(url, storage)
    return ScoredDataset(fs, root, load_manifest(fs, root, kind))


def content_of(manifest: Manifest) -> str:
    """What identifies the rows of a dataset: a digest of the footers of its parts, with the sizes of every page."""
    return digest("".join(file.footer_digest for file in manifest.files).encode())


def _stored(shard: RowShard, rows_out: int | None) -> dict[str, int]:
    known = {} if rows_out is None else {"num_rows": shard.num_rows * rows_out}
    return {"first_row": shard.first_row, "rows_in": shard.num_rows, **known}
