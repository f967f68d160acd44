"""Stages, the shards they work on, and the plain loop that applies the ones to the others."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline.config import Replicas
from pipeline.drops import StageName
from pipeline.errors import AlignpotError
from pipeline.faults import storage_errors
from pipeline.steps.shards import AnyShard, ShardReader

Apply = Callable[[pa.Table], pa.Table]

Commit = Callable[[int, pa.Table], pa.Table]
"""Writes the part of a shard, given its index and table; returns its summary as a one-row table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What is done to every shard: how it is built, and the resources of its model."""

    name: StageName
    """By which dropped rows are counted."""
    build: Callable[[], Apply]
    model: Replicas | None = None
    """The section with the number of replicas, CPUs and GPUs of its model; null for a stage without one."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that its process must have from the start, if it gets a process of its own."""
    key: str = ""
    """The key of its section, where several stages have one name."""

    @property
    def label(self) -> str:
        """By which its time is measured."""
        return self.key or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When one stage worked on one shard, in Unix seconds."""

    stage: str
    started_s: float
    ended_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """A shard: its index and table, what has been done to it so far, and the error that ended the work on it."""

    shard: int
    table: pa.Table
    timings: tuple[Timing, ...] = ()
    failure: AlignpotError | None = None

    def after(self, stage: str, apply: Apply) -> "ShardWork":
        """The same shard after a stage."""
        started = time.time()
        table = apply(self.table)
        timing = Timing(stage=stage, started_s=started, ended_s=time.time())
        return replace(self, table=table, timings=(*self.timings, timing))


def read_shard(reader: ShardReader, shard: AnyShard) -> ShardWork:
    """Read a shard of the source. Raises an AlignpotError if the file cannot be read, is gone or has changed."""

    def read(_: pa.Table) -> pa.Table:
        with storage_errors(shard.file):
            return reader.read(shard)

    return ShardWork(shard=shard.index, table=pa.table({})).after("read", read)


def commit_shard(work: ShardWork, commit: Commit) -> ShardWork:
    """Write the part of a shard. Its summary takes the place of the table."""
    return work.after("commit", lambda table: commit(work.shard, table))


def run_plain(
    reader: ShardReader, shards: Sequence[AnyShard], stages: Sequence[Stage], commit: Commit
) -> Iterator[ShardWork]:
    """Run every stage over the shards in this process, one after another, and commit their parts.

    Yields the work on each committed shard, with the part's summary as its table. Runs on Ray must equal this.
    """
    built: list[tuple[str, Apply]] = []
    try:
        built.extend((stage.label, stage.build()) for stage in stages)
        for shard in shards:
            work = read_shard(reader, shard)
            for name, apply in built:
                work = work.after(name, apply)
            yield commit_shard(work, commit)
    finally:
        for _, apply in built:
            close_stage(apply)


def close_stage(apply: Any) -> None:
    """Free what a built stage or its engine holds open, if it has a method for that."""
    close = getattr(apply, "close", None)
    if close is not None:
        close()
