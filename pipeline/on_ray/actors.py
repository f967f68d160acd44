"""What Ray runs for a shard: read tasks, actors that hold stages, and commit tasks.

A shard travels as one row of a block, which holds its whole table as Arrow IPC. Ray Data splits and merges blocks
between operators, and asks for a batch size in rows where GPUs are reserved. Nothing smaller than a row can be split
off, and a batch of one row is one shard. Decoding copies nothing.

An error of ours travels to the driver as data and is raised there. Ray would keep neither its class nor its message,
and would print a traceback that may quote a row.
"""

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Final, TypeVar

import pyarrow as pa
import ray

from pipeline.errors import AlignpotError
from pipeline.on_ray.deaths import Deaths
from pipeline.on_ray.metrics import count_restart
from pipeline.progress import no_bars
from pipeline.steps.shards import AnyShard, ShardReader
from pipeline.steps.work import (
    Apply,
    Commit,
    Ready,
    ShardWork,
    Stage,
    batches,
    commit_shard,
    in_turn,
    read_shard,
)

_NAMES: Final = {"policy": "PolicyLogprobActor", "reference": "ReferenceLogprobActor"}

Built = TypeVar("Built")

_log = logging.getLogger(__name__)


def to_block(work: ShardWork) -> pa.Table:
    """The one-row Arrow block that Ray Data carries."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, work.table.schema) as writer:
        writer.write_table(work.table)
    data = sink.getvalue()
    offsets = pa.array([0, data.size], pa.int64()).buffers()[1]
    table = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])
    about = pickle.dumps((work.shard, work.timings, work.failure))
    return pa.table({"rows": [work.table.num_rows], "table": table, "about": pa.array([about], pa.binary())})


def from_block(block: pa.Table) -> ShardWork:
    """Unpack a one-row block without copying the table."""
    shard, timings, failure = pickle.loads(block.column("about")[0].as_py())  # noqa: S301 - to_block wrote it
    table = pa.ipc.open_stream(block.column("table")[0].as_buffer()).read_all()
    return ShardWork(shard=shard, table=table, timings=timings, failure=failure)


def read_block(reader: ShardReader, shards: Sequence[AnyShard]) -> Iterator[pa.Table]:
    """Read the shards of one block; a task of Ray Data gives its blocks one by one."""

    def read(shard: AnyShard) -> ShardWork:
        nothing = ShardWork(shard=shard.index, table=pa.table({}))
        return _attempt(nothing, lambda _: read_shard(reader, shard))

    yield pa.concat_tables([to_block(read(shard)) for shard in shards])


def commit_block(commit: Commit, block: pa.Table) -> pa.Table:
    """Write the part of a shard and pass its summary on."""
    return to_block(_attempt(from_block(block), lambda work: commit_shard(work, commit)))


def _attempt(work: ShardWork, step: Callable[[ShardWork], ShardWork]) -> ShardWork:
    """The shard after a step. If the step raises an error of ours, or one before it did, the shard is given up."""
    if work.failure is not None:
        return work
    try:
        return step(work)
    except AlignpotError as error:
        return _given_up(work, error)


def _given_up(work: ShardWork, error: AlignpotError) -> ShardWork:
    return replace(work, table=work.table.slice(0, 0), failure=error)


class StageActor:
    """Holds stages, built once in its own process, and applies them to one shard at a time.

    With `take_turns` it holds one stage at a time, and applies each to all shards that came together.

    Calls may overlap: while the stages work on one shard, the last one leaves and the next one arrives.
    """

    def __init__(self, stages: Sequence[Stage], deaths: Deaths | None = None, *, take_turns: bool = False) -> None:
        no_bars()
        self._one_at_a_time = Lock()
        self._ready: Ready = []
        self._turns = stages if take_turns else []
        self._unbuilt: AlignpotError | None = None
        self._deaths = deaths if deaths is not None and _was_restarted() else None
        if self._deaths is not None:
            count_restart(type(self).__name__)
        # What fails here fails again. Ray would build the actor again and again, and not say why.
        try:
            if not take_turns:
                self._ready = self._built("", lambda: [(stage, stage.build()) for stage in stages])
        except AlignpotError as error:
            self._unbuilt = error

    def __call__(self, block: pa.Table) -> pa.Table:
        """Apply the stages to the shards of a block, each of which is one row."""
        works = [from_block(block.slice(index, 1)) for index in range(block.num_rows)]
        if not self._turns:
            return pa.concat_tables([to_block(_attempt(work, self._apply)) for work in works])
        with self._one_at_a_time:
            done = [work for batch in batches(works, len(works)) for work in self._in_turn(batch)]
        return pa.concat_tables([to_block(work) for work in done])

    def _apply(self, work: ShardWork) -> ShardWork:
        if self._unbuilt is not None:
            raise self._unbuilt
        with self._one_at_a_time:
            return self._applied(work, self._ready)

    def _in_turn(self, works: list[ShardWork]) -> list[ShardWork]:
        failed = [work for work in works if work.failure is not None]
        going_on = [work for work in works if work.failure is None]

        def build(stage: Stage) -> Apply:
            return self._built(f"-{stage.label}", stage.build)

        try:
            return [*failed, *in_turn(going_on, self._turns if going_on else [], build, self._applied)]
        except AlignpotError as error:
            return [*failed, *(_given_up(work, error) for work in going_on)]

    def _applied(self, work: ShardWork, ready: Ready) -> ShardWork:
        for stage, apply in ready:
            marked = (
                None
                if self._deaths is None
                else partial(self._deaths.apply, work.shard, stage.name, apply, label=stage.label)
            )
            work = work.after(stage.label, marked or apply)
        return work

    def _built(self, suffix: str, build: Callable[[], Built]) -> Built:
        """What `build` gives. Raises an AlignpotError if it fails, or if it kills this worker again and again."""
        name = type(self).__name__
        try:
            if self._deaths is None:
                return build()
            return self._deaths.build(f"{name}-{ray.get_runtime_context().get_actor_id()}{suffix}", build)
        except AlignpotError:
            raise
        except Exception as error:  # noqa: BLE001 - the next actor would meet the same error
            _log.exception("%s cannot be built", name)
            raise AlignpotError(
                f"{name} cannot be built: {type(error).__name__}. The log above has the traceback."
            ) from None


def _was_restarted() -> bool:
    """Whether Ray started this actor again after a death."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray itself calls a method that it has deprecated
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def actor_class(group: Sequence[Stage]) -> type[StageActor]:
    """A class of its own for the actors of a group of stages: Ray names bars, logs and dashboard rows after it."""
    name = _NAMES.get(group[0].name, f"{group[0].name.capitalize()}Actor") if len(group) == 1 else "ColocatedActor"
    return type(name, (StageActor,), {})
