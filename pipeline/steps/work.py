"""Stages, the shards they work on, and the plain loop that applies the ones to the others."""

import ctypes
import gc
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any, Final

import pyarrow as pa

from pipeline.config import Replicas
from pipeline.drops import StageName
from pipeline.errors import AlignpotError
from pipeline.faults import storage_errors
from pipeline.steps.shards import AnyShard, ShardReader
from pipeline.termination import raise_if_terminated

_BATCH_BYTES: Final = 256 << 20

_log = logging.getLogger(__name__)

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
    reader: ShardReader,
    shards: Sequence[AnyShard],
    stages: Sequence[Stage],
    commit: Commit,
    turn_shards: int | None = None,
) -> Iterator[ShardWork]:
    """Run every stage over the shards in this process, one after another, and commit their parts.

    turn_shards: shards of a batch, if models take turns (see `in_turn`); None holds them all at once.

    Yields the work on each committed shard, with the part's summary as its table. Runs on Ray must equal this.
    """
    kept = [*stages] if turn_shards is None else [*takewhile(lambda stage: stage.model is None, stages)]
    with held(kept) as ready:
        works = (applied(read_shard(reader, shard), ready) for shard in shards)
        for batch in batches(works, turn_shards or 1):
            for work in in_turn(batch, stages[len(kept) :]):
                yield commit_shard(work, commit)


def batches(works: Iterable[ShardWork], most: int) -> Iterator[list[ShardWork]]:
    """The same in lists of at most so many, and of few bytes."""
    batch: list[ShardWork] = []
    for work in works:
        batch.append(work)
        if len(batch) == most or sum(each.table.nbytes for each in batch) >= _BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def in_turn(
    works: Sequence[ShardWork],
    stages: Sequence[Stage],
    build: Callable[[Stage], Apply] = lambda stage: stage.build(),
    apply: Callable[[ShardWork, "Ready"], ShardWork] | None = None,
) -> Iterator[ShardWork]:
    """Apply one stage after another to all the shards. Each is built before, and freed with its memory after its turn.

    build, apply: other ways to build a stage and to apply those that are ready.

    Yields a shard when its last stage is through with it.
    """
    apply = apply or applied
    for index, stage in enumerate(stages):
        started = time.monotonic()
        try:
            with held([stage], build) as ready:
                _log.info("%s: loaded in %.1f s, for %d shards", stage.label, time.monotonic() - started, len(works))
                done = (apply(work, ready) for work in works)
                if index == len(stages) - 1:
                    yield from done
                    return
                works = [*done]
        finally:
            free_memory()
    yield from works


Ready = list[tuple[Stage, Apply]]
"""Stages that are built."""


@contextmanager
def held(stages: Sequence[Stage], build: Callable[[Stage], Apply] = lambda stage: stage.build()) -> Iterator[Ready]:
    """Build stages, and close them at the end. The last reference to them must be that to the list."""
    ready: Ready = []
    try:
        for stage in stages:
            ready.append((stage, build(stage)))
        yield ready
    finally:
        while ready:
            close_stage(ready.pop()[1])


@contextmanager
def built_once(stages: Sequence[Stage]) -> Iterator[list[Stage]]:
    """The same stages for several runs of the plain loop: each is built in the first run, and closed at the end."""
    built: dict[int, Apply] = {}

    def build(index: int) -> Apply:
        if index not in built:
            built[index] = stages[index].build()

        def apply(table: pa.Table) -> pa.Table:  # without a method to close it
            return built[index](table)

        return apply

    try:
        yield [replace(stage, build=partial(build, index)) for index, stage in enumerate(stages)]
    finally:
        while built:
            close_stage(built.popitem()[1])


def applied(work: ShardWork, ready: Ready) -> ShardWork:
    """A shard after the stages that are ready."""
    raise_if_terminated()
    for stage, apply in ready:
        work = work.after(stage.label, apply)
    return work


def free_memory() -> None:
    """Give back the memory of models that nothing refers to any more: of this process, and of its GPU."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def close_stage(apply: Any) -> None:
    """Free what a built stage or its engine holds open, if it has a method for that."""
    close = getattr(apply, "close", None)
    if close is not None:
        close()
