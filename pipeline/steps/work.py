"""A shard being worked on: its table, and when each stage had it. Also the plain loop over shards."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from pipeline import errors
from pipeline.errors import AlignpotError
from pipeline.faults import storage_errors
from pipeline.steps.plan import Apply, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When one stage worked on one shard, in Unix seconds."""

    stage: str
    started_s: float
    ended_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error of ours as data: its class by name, and its message."""

    kind: str
    message: str

    def as_error(self) -> AlignpotError:
        """The error to raise."""
        kind: type[AlignpotError] = getattr(errors, self.kind, AlignpotError)
        return kind(self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """A shard's index and table, and what has been done to it so far."""

    shard: int
    table: pa.Table
    timings: tuple[Timing, ...] = ()
    failure: Failure | None = None

    def after(self, stage: str, apply: Apply) -> "ShardWork":
        """The same shard after a stage."""
        started = time.time()
        table = apply(self.table)
        timing = Timing(stage=stage, started_s=started, ended_s=time.time())
        return replace(self, table=table, timings=(*self.timings, timing))

    def failed(self, error: AlignpotError) -> "ShardWork":
        """The same shard given up; its rows stay behind."""
        failure = Failure(kind=type(error).__name__, message=str(error))
        return replace(self, table=self.table.slice(0, 0), failure=failure)


class AnyShard(Protocol):
    """A share of the rows: its place in the plan, and what it is called in messages."""

    @property
    def index(self) -> int:
        """Place in the plan, 0-based and dense."""

    @property
    def file(self) -> str:
        """The file that its rows are of, or what else they are."""


class ShardReader(Protocol):
    """Gives the rows of the shards that were planned for it."""

    def read(self, shard: Any) -> pa.Table:
        """The rows of one shard."""


def read_shard(reader: ShardReader, shard: AnyShard) -> ShardWork:
    """Read a shard of the source.

    Raises:
        AlignpotError: the file cannot be read, is gone or has changed.
    """

    def read(_: pa.Table) -> pa.Table:
        with storage_errors(shard.file):
            return reader.read(shard)

    return ShardWork(shard=shard.index, table=pa.table({})).after("read", read)


Commit = Callable[[int, pa.Table], pa.Table]
"""Writes the part of a shard, given its index and table; returns its summary as a one-row table."""


def run_plain(
    reader: ShardReader, shards: Sequence[AnyShard], stages: Sequence[Stage], commit: Commit
) -> Iterator[ShardWork]:
    """Run every stage over the shards in this process, one after another.

    Yields the work on each committed shard, its table replaced by the part's summary. Ray Data must be equal to this.
    """
    built: list[tuple[str, Apply]] = []
    try:
        built.extend((stage.name, stage.build()) for stage in stages)
        for shard in shards:
            work = read_shard(reader, shard)
            for name, apply in built:
                work = work.after(name, apply)
            yield commit_shard(work, commit)
    finally:
        close_stages([apply for _, apply in built])


def close_stages(stages: Iterable[Apply]) -> None:
    """Free what stages hold open, such as an engine with memory of its own."""
    for apply in stages:
        close = getattr(apply, "close", None)
        if close is not None:
            close()


def commit_shard(work: ShardWork, commit: Commit) -> ShardWork:
    """Write the part of a shard; what goes on is its summary."""
    return work.after("commit", lambda table: commit(work.shard, table))
