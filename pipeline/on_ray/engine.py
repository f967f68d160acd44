"""Run the pending shards of a step on Ray Data: shards in blocks, stages in pools of actors.

    read shard | tokenise | RewardActor pool | policy pool | reference pool | commit part

Each pool works on another shard at the same time, so explicit and implicit scoring overlap. With
`placement: colocated` one pool holds all models and runs them one after another; with `in_turn` it holds one of them at
a time, and a block for it has a batch of shards.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline.config import Run
from pipeline.data.place import Place
from pipeline.models.layout import Placement
from pipeline.models.vllm_engine import GRANTED_GPUS
from pipeline.on_ray.actors import actor_class, commit_block, from_block, read_block
from pipeline.on_ray.deaths import Deaths
from pipeline.on_ray.metrics import RunMetrics
from pipeline.on_ray.placement import (
    IO_CPUS,
    accelerator_of,
    cpus_per_actor,
    gpus_by_pool,
    layout_on_ray,
    num_replicas,
)
from pipeline.on_ray.session import ray_session
from pipeline.steps.placed import has_models, take_turns
from pipeline.steps.shards import AnyShard, ShardReader
from pipeline.steps.work import Commit, ShardWork, Stage

# Ray restarts without end by default. A row that kills its worker costs three deaths (see deaths), and each of them
# counts against every shard that the worker had at hand.
_MAX_RESTARTS: Final = 20
_CALLS_PER_ACTOR: Final = 2
_FEWEST_AT_HAND: Final = 2
_MOST_AT_HAND: Final = 6
_FEWEST_IO_TASKS: Final = 2
_BLOCK_ROWS: Final = 256
_MANY_BLOCKS: Final = 1024


class ShardSource(Datasource):  # type: ignore[misc]
    """One read task, and one block, for each list of shards."""

    def __init__(self, reader: ShardReader, blocks: Sequence[Sequence[AnyShard]]) -> None:
        super().__init__()
        self._reader = reader
        self._blocks = blocks

    def get_name(self) -> str:
        """The name Ray shows for the operator."""
        return "Rows"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before reading."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """The read tasks, in the order of the plan; tasks never share a shard."""
        del parallelism, per_task_row_limit, data_context
        return [
            ReadTask(
                partial(read_block, self._reader, shards),
                BlockMetadata(num_rows=len(shards), size_bytes=None, exec_stats=None, input_files=None),
            )
            for shards in self._blocks
        ]


def run_on_ray(
    reader: ShardReader,
    shards: Sequence[AnyShard],
    stages: Sequence[Stage],
    commit: Commit,
    run: Run,
    dataset: Place | None = None,
) -> Iterator[ShardWork]:
    """Run every stage over the shards and commit their parts.

    Yields the work on each committed shard in the order of completion, with the part's summary as its table.

    dataset: a place for marks by which rows that kill workers are found (see deaths). Without it they end the run.

    Raises the first AlignpotError that a shard met.
    """
    deaths = None if dataset is None else Deaths(dataset=dataset)
    with ray_session(run, [stage.model for stage in stages if stage.model is not None]):
        layout = layout_on_ray(stages, run)
        groups = _groups(stages, layout.placement)
        gpus = gpus_by_pool(groups, layout, may_grow=run.cluster is not None)
        turn_shards = run.turn_shards if take_turns(stages, layout) else None
        # Tasks that read or commit differ from every actor in CPUs, or Ray Data fuses reading into the first pool.
        taken = {cpus_per_actor([stage]) for stage in stages}
        io_cpus = next(cpus for cpus in (IO_CPUS, 0.2, 0.15, 0.1, 0.05) if cpus not in taken)
        io_tasks = _io_tasks(run, len(shards))
        packed = in_blocks(shards)
        blocks = ray.data.read_datasource(
            ShardSource(reader, packed), override_num_blocks=len(packed), num_cpus=io_cpus, concurrency=io_tasks
        )
        workers = [min(num_replicas(group)[1], len(shards)) for group in groups]
        metrics = RunMetrics(
            {stage.label: number for group, number in zip(groups, workers, strict=True) for stage in group},
            num_gpus=sum(num * number for num, number in zip(gpus, workers, strict=True)),
        )
        for group, num_gpus in zip(groups, gpus, strict=True):
            in_batches = turn_shards if has_models(group) else None
            pool = _pool(group, num_gpus, num_shards=len(shards), deaths=deaths, turn_shards=in_batches)
            blocks = blocks.map_batches(**pool)
        blocks = blocks.map_batches(
            partial(commit_block, commit),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.TaskPoolStrategy(io_tasks),
            num_cpus=io_cpus,
        )
        for block in blocks.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            work = from_block(block)
            if work.failure is not None:
                raise work.failure
            metrics.count(work)
            yield work
        metrics.flush()


def _groups(stages: Sequence[Stage], placement: Placement) -> list[list[Stage]]:
    """Groups of stages that share an actor: each stage alone, or all models together."""
    if placement == "pooled":
        return [[stage] for stage in stages]
    plain, with_model = [s for s in stages if s.model is None], [s for s in stages if s.model is not None]
    return [[s] for s in plain] + ([with_model] if with_model else [])


def _pool(
    group: Sequence[Stage],
    num_gpus: float,
    *,
    num_shards: int,
    deaths: Deaths | None = None,
    turn_shards: int | None = None,
) -> dict[str, Any]:
    """Arguments of the map_batches call that runs a group of stages; no more actors than there are blocks for them.

    turn_shards: shards of one block, if its models take turns.
    """
    models = [stage.model for stage in group if stage.model is not None]
    num_shards = -(-num_shards // (turn_shards or 1))
    fewest, most = (min(number, num_shards) for number in num_replicas(group))
    accelerator = accelerator_of(group)
    env = {name: value for stage in group for name, value in stage.env.items()}
    if env and num_gpus:
        env[GRANTED_GPUS] = str(num_gpus if turn_shards else num_gpus / len(models))
    return {
        "fn": actor_class(group),
        "fn_constructor_args": (list(group), deaths),
        "fn_constructor_kwargs": {"take_turns": turn_shards is not None},
        "batch_size": turn_shards or 1,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "compute": ray.data.ActorPoolStrategy(
            min_size=fewest,
            max_size=most,
            # Ray starts more actors where those that there are hold nearly twice the shards that they work on.
            max_tasks_in_flight_per_actor=shards_at_hand(most, num_shards) if fewest == most else _MOST_AT_HAND,
        ),
        # Stages with an environment run vLLM, whose engine belongs to the thread that made it.
        "max_concurrency": 1 if env else _CALLS_PER_ACTOR,
        "num_cpus": cpus_per_actor(group),
        "num_gpus": num_gpus or None,
        **({"accelerator_type": accelerator} if accelerator else {}),
        **({"runtime_env": {"env_vars": env}} if env else {}),
        "max_restarts": _MAX_RESTARTS,
        "max_task_retries": _MAX_RESTARTS,
    }


def in_blocks(shards: Sequence[AnyShard]) -> list[Sequence[AnyShard]]:
    """Lists of shards that travel together: one shard each, but more where there are very many, all of few rows.

    Each block costs the driver some 40 ms of CPU, however small it is. At least `_MANY_BLOCKS` blocks remain, so that
    no actor waits long for the last one.
    """
    few = len(shards) // _MANY_BLOCKS
    size = max(1, min(few, _BLOCK_ROWS // max(shard.num_rows for shard in shards))) if few > 1 else 1
    return [shards[first : first + size] for first in range(0, len(shards), size)]


def shards_at_hand(replicas: int, num_shards: int) -> int:
    """Shards that one actor of a pool may hold, the one it works on included.

    The more it holds, the less it waits for the driver, which looks about ten times a second. But no other actor can
    take them: near the end of a short run one actor would work while the rest of its pool has nothing left.
    """
    if replicas == 1:
        return _MOST_AT_HAND
    return min(_MOST_AT_HAND, max(_FEWEST_AT_HAND, num_shards // (8 * replicas)))


def _io_tasks(run: Run, num_shards: int) -> int | None:
    """Most tasks that read at once, and that commit. On a Ray of our own: as many as cores.

    Each takes a process, and a machine of a few cores would spend its time on starting them.
    """
    if run.cluster is not None:
        return None
    return min(num_shards, max(_FEWEST_IO_TASKS, os.cpu_count() or 1))
