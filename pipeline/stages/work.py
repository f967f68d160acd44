"""A shard being worked on: its table, and when each stage had it. Also the plain loop over shards."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.sources.reader import PairReader
from pipeline.sources.shards import Shard
from pipeline.stages.plan import Apply, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When one stage worked on one shard: Unix seconds, and the process that did it."""

    stage: str
    worker: str
    started_s: float
    ended_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """A shard's index and table, and what has been done to it so far."""

    shard: int
    table: pa.Table
    timings: tuple[Timing, ...] = ()

    def after(self, stage: str, apply: Apply) -> "ShardWork":
        """The same shard after a stage."""
        started = time.time()
        table = apply(self.table)
        return replace(self, table=table, timings=(*self.timings, _timing(stage, started)))


def read_shard(reader: PairReader, shard: Shard) -> ShardWork:
    """Read a shard of the source."""
    started = time.time()
    table = reader.read(shard)
    return ShardWork(shard=shard.index, table=table, timings=(_timing("read", started),))


Commit = Callable[[int, pa.Table], pa.Table]
"""Writes the part of a shard, given its index and table; returns its summary as a one-row table."""


def score_plain(
    reader: PairReader, shards: Sequence[Shard], stages: Sequence[Stage], commit: Commit
) -> Iterator[ShardWork]:
    """Run every stage over the shards in this process, one after another.

    Yields the work on each committed shard, its table replaced by the part's summary. Ray Data must be equal to this.
    """
    built = [(stage.name, stage.build()) for stage in stages]
    for shard in shards:
        work = read_shard(reader, shard)
        for name, apply in built:
            work = work.after(name, apply)
        yield commit_shard(work, commit)


def commit_shard(work: ShardWork, commit: Commit) -> ShardWork:
    """Write the part of a shard; what goes on is its summary."""
    return work.after("commit", lambda table: commit(work.shard, table))


def _timing(stage: str, started: float) -> Timing:
    return Timing(stage=stage, worker=f"{os.uname().nodename}:{os.getpid()}", started_s=started, ended_s=time.time())
