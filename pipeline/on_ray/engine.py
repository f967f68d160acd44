"""Score the pending shards of a run on Ray Data: shards as blocks, models in pools of actors.

    read shard | tokenise | RewardActor pool | policy pool | reference pool | commit part

Each pool works on another shard at the same time, so explicit and implicit scoring overlap. With
`placement: colocated` one pool holds all models and runs them one after another.

An error of ours travels to the driver as data and is raised there: Ray would keep neither its class nor its message,
and would print a traceback with whatever values it was about.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Final

import pyarrow as pa
import ray.data
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline.config import Run
from pipeline.drops import StageName
from pipeline.errors import AlignpotError
from pipeline.models.vllm_engine import GRANTED_GPUS
from pipeline.on_ray.deaths import Deaths
from pipeline.on_ray.envelope import from_block, to_block
from pipeline.on_ray.placement import IO_CPUS, cpus_per_actor, gpus_by_pool, num_replicas
from pipeline.on_ray.session import cluster_address
from pipeline.progress import no_bars
from pipeline.steps.plan import Apply, Stage
from pipeline.steps.work import AnyShard, Commit, ShardReader, ShardWork, commit_shard, read_shard

# Ray restarts without end by default. A row that kills its worker costs three deaths (see deaths), each of which counts
# against every shard that the worker had at hand.
_MAX_RESTARTS: Final = 20
_CALLS_PER_ACTOR: Final = 2
_FEWEST_AT_HAND: Final = 2
_MOST_AT_HAND: Final = 6
_FEWEST_IO_TASKS: Final = 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJob:
    """What the shards of a run have in common: how to read, what to do, where to commit."""

    reader: ShardReader
    stages: tuple[Stage, ...]
    commit: Commit
    run: Run
    deaths: Deaths | None = None
    """Finds rows that kill workers; without it they end the run."""


class ShardSource(Datasource):  # type: ignore[misc]
    """One read task, and one block, for each shard."""

    def __init__(self, reader: ShardReader, shards: Sequence[AnyShard]) -> None:
        super().__init__()
        self._reader = reader
        self._shards = shards

    def get_name(self) -> str:
        """The name Ray shows for the operator."""
        return "Rows"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before reading."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """The read tasks, in the order of the plan; a shard is never shared between tasks."""
        del parallelism, per_task_row_limit, data_context
        unknown = BlockMetadata(num_rows=1, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(_ReadShard(self._reader, shard), unknown) for shard in self._shards]


@dataclass(frozen=True, slots=True)
class _ReadShard:
    reader: ShardReader
    shard: AnyShard

    def __call__(self) -> Iterable[Block]:
        nothing = ShardWork(shard=self.shard.index, table=pa.table({}))
        yield to_block(_attempt(nothing, lambda _: read_shard(self.reader, self.shard)))


@dataclass(frozen=True, slots=True)
class CommitPart:
    """Writes the part of a shard and passes its summary on; runs as a task on any node."""

    commit: Commit

    def __call__(self, block: pa.Table) -> pa.Table:
        """Commit one shard."""
        return to_block(_attempt(from_block(block), lambda work: commit_shard(work, self.commit)))


class StageActor:
    """Holds the stages it is given, built once in its own process, and applies them to one shard at a time.

    Calls may overlap: while the stages work on one shard, the last one leaves and the next one arrives.
    """

    def __init__(self, stages: Sequence[Stage], deaths: Deaths | None = None) -> None:
        no_bars()
        self._one_at_a_time = Lock()
        self._stages: list[tuple[StageName, Apply]] = []
        self._unbuilt: AlignpotError | None = None
        self._deaths = deaths if deaths is not None and _was_restarted() else None
        # What fails here fails again: Ray would build the actor again and again, and not say why.
        try:
            if self._deaths is None:
                self._stages = _built(stages)
            else:
                worker = f"{type(self).__name__}-{ray.get_runtime_context().get_actor_id()}"
                self._stages = self._deaths.build(worker, partial(_built, stages))
        except AlignpotError as error:
            self._unbuilt = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the next actor would meet it too
            _log.exception("%s cannot be built", type(self).__name__)
            self._unbuilt = AlignpotError(
                f"{type(self).__name__} cannot be built: {type(error).__name__}. The log above has the traceback."
            )

    def __call__(self, block: pa.Table) -> pa.Table:
        """Apply the stages to one shard."""
        return to_block(_attempt(from_block(block), self._apply))

    def _apply(self, work: ShardWork) -> ShardWork:
        if self._unbuilt is not None:
            raise self._unbuilt
        with self._one_at_a_time:
            for name, apply in self._stages:
                marked = None if self._deaths is None else partial(self._deaths.apply, work.shard, name, apply)
                work = work.after(name, marked or apply)
        return work


def _was_restarted() -> bool:
    """Whether Ray started this actor again after a death."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray asks itself in a way that it has deprecated
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def _built(stages: Sequence[Stage]) -> list[tuple[StageName, Apply]]:
    return [(stage.name, stage.build()) for stage in stages]


def _attempt(work: ShardWork, step: Callable[[ShardWork], ShardWork]) -> ShardWork:
    """The shard after a step, or given up with the error of ours that the step, or one before it, met."""
    if work.failure is not None:
        return work
    try:
        return step(work)
    except AlignpotError as error:
        return work.failed(error)


# Ray names bars, logs and dashboard rows after the class.
class TokeniseActor(StageActor):
    """Chat templates and token ids, on CPUs."""


class RewardActor(StageActor):
    """Rewards of both dialogues."""


class PolicyLogprobActor(StageActor):
    """Log-probabilities under the policy."""


class ReferenceLogprobActor(StageActor):
    """Log-probabilities under the reference."""


class GenerateActor(StageActor):
    """Responses sampled from the policy."""


class EvolveActor(StageActor):
    """New prompts made of prompts by the policy."""


class AnnotateActor(StageActor):
    """Rewards of all responses to a prompt."""


class ColocatedActor(StageActor):
    """Every model of the run, one after another."""


_ACTORS: Final[dict[str, type[StageActor]]] = {
    "tokenise": TokeniseActor,
    "reward": RewardActor,
    "policy": PolicyLogprobActor,
    "reference": ReferenceLogprobActor,
    "generate": GenerateActor,
    "evolve": EvolveActor,
    "annotate": AnnotateActor,
}


def run_on_ray(job: RayJob, shards: Sequence[AnyShard]) -> Iterator[ShardWork]:
    """Run every stage over the shards and commit their parts.

    Yields the work on each committed shard in the order of completion, its table replaced by the part's summary.

    Raises:
        AlignpotError: the first error of ours that a shard met.
    """
    groups = _groups(job.stages, job.run)
    gpus = gpus_by_pool(groups, may_grow=cluster_address(job.run) is not None)
    io_cpus, io_tasks = _io_cpus(job.stages), _io_tasks(job.run, len(shards))
    source = ShardSource(job.reader, shards)
    dataset = ray.data.read_datasource(source, override_num_blocks=len(shards), num_cpus=io_cpus, concurrency=io_tasks)
    for group, num_gpus in zip(groups, gpus, strict=True):
        dataset = dataset.map_batches(**_pool(group, num_gpus, num_shards=len(shards), deaths=job.deaths))
    dataset = dataset.map_batches(
        CommitPart(job.commit),
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.TaskPoolStrategy(io_tasks),
        num_cpus=io_cpus,
    )
    for block in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
        work = from_block(block)
        if work.failure is not None:
            raise work.failure.as_error()
        yield work


def _groups(stages: Sequence[Stage], run: Run) -> list[list[Stage]]:
    """Stages that share an actor: each its own, or all models together."""
    if run.placement == "pooled":
        return [[stage] for stage in stages]
    plain, with_model = [s for s in stages if s.model is None], [s for s in stages if s.model is not None]
    return [[s] for s in plain] + ([with_model] if with_model else [])


def _pool(group: Sequence[Stage], num_gpus: float, *, num_shards: int, deaths: Deaths | None = None) -> dict[str, Any]:
    """Arguments of the map_batches call that runs a group of stages; no more actors than there are shards."""
    models = [stage.model for stage in group if stage.model is not None]
    replicas = num_replicas(group)
    env = {name: value for stage in group for name, value in stage.env.items()}
    if env and num_gpus:
        env[GRANTED_GPUS] = str(num_gpus / len(models))
    return {
        "fn": ColocatedActor if len(models) > 1 else _ACTORS[group[0].name],
        "fn_constructor_args": (list(group), deaths),
        "batch_size": 1,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "compute": ray.data.ActorPoolStrategy(
            size=min(replicas, num_shards), max_tasks_in_flight_per_actor=shards_at_hand(replicas, num_shards)
        ),
        # vLLM's engine belongs to the thread that made it; stages that run one set their process's environment.
        "max_concurrency": 1 if env else _CALLS_PER_ACTOR,
        "num_cpus": cpus_per_actor(group),
        "num_gpus": num_gpus or None,
        **({"runtime_env": {"env_vars": env}} if env else {}),
        "max_restarts": _MAX_RESTARTS,
        "max_task_retries": _MAX_RESTARTS,
    }


def shards_at_hand(replicas: int, num_shards: int) -> int:
    """Shards that one actor of a pool may hold, the one it works on included.

    The more it holds, the less it waits for the driver, which looks some ten times a second. But what it holds no other
    actor can take: near the end of few shards one would work while the rest of its pool has nothing left.
    """
    if replicas == 1:
        return _MOST_AT_HAND
    return min(_MOST_AT_HAND, max(_FEWEST_AT_HAND, num_shards // (8 * replicas)))


def _io_cpus(stages: Sequence[Stage]) -> float:
    """CPUs of a read or commit task: unlike any actor's, or Ray Data would fuse reading into the first pool."""
    taken = {cpus_per_actor([stage]) for stage in stages}
    return next(cpus for cpus in (IO_CPUS, 0.2, 0.15, 0.1, 0.05) if cpus not in taken)


def _io_tasks(run: Run, num_shards: int) -> int | None:
    """Most tasks that read at once, and that commit: on a Ray of our own as many as cores.

    Each takes a process, which a machine of a few cores is busy starting while there is little to read or commit.
    """
    if cluster_address(run) is not None:
        return None
    return min(num_shards, max(_FEWEST_IO_TASKS, os.cpu_count() or 1))
