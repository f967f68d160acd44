"""How many GPUs the actors of each pool reserve, and whether the cluster can place every pool at once.

A pool without a place waits forever, and the other pools wait for it. So this is checked before anything starts.
"""

import logging
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Final, Literal

import ray

from pipeline.config import Replicas, Run
from pipeline.errors import ConfigError
from pipeline.models.layout import Layout, needs_of
from pipeline.models.vllm_engine import num_shards
from pipeline.steps.placed import free_on_gpus, layout_of, models_of, wants_gpu
from pipeline.steps.work import Stage

TOKENISE_CPUS: Final = 0.5
IO_CPUS: Final = 0.25
"""CPUs of one task that reads or commits."""
_ACCELERATOR: Final = "accelerator_type:"
"""Begins the name of the resource by which Ray says what GPUs a node has."""

_log = logging.getLogger(__name__)


def num_replicas(group: Sequence[Stage]) -> tuple[int, int]:
    """The fewest and the most actors of the pool that runs a group of stages."""
    ranges = [stage.model.replica_range for stage in group if stage.model is not None] or [(1, 1)]
    return max(fewest for fewest, _ in ranges), max(most for _, most in ranges)


def accelerator_of(group: Sequence[Stage]) -> str | None:
    """The kind of GPU that every actor of the pool must have. Raises a ConfigError if its models name several."""
    return _one_accelerator([stage.model for stage in group if stage.model is not None])


def _one_accelerator(models: Sequence[Replicas]) -> str | None:
    kinds = sorted({model.accelerator_type for model in models if model.accelerator_type is not None})
    if len(kinds) > 1:
        raise ConfigError(
            f"accelerator_type: models that share a process name {' and '.join(kinds)}. Give them the same one, "
            "or set run.placement: pooled."
        )
    return kinds[0] if kinds else None


def cpus_per_actor(group: Sequence[Stage]) -> float:
    """CPUs that one actor of the pool reserves."""
    return max((stage.model.num_cpus for stage in group if stage.model is not None), default=TOKENISE_CPUS)


def layout_on_ray(stages: Sequence[Stage], run: Run) -> Layout:
    """Where the models go on the Ray that this process has joined. Raises a ConfigError as `choose_layout`.

    Bytes are compared where GPUs are short, and on a Ray of our own, to find a model that does not fit.
    """
    models, num_gpus = models_of(stages), int(ray.cluster_resources().get("GPU", 0))
    wanted = sum(model.replica_range[0] for model in models.values() if model.num_gpus != 0)
    is_short = wanted > num_gpus
    compares = run.placement == "auto" and wanted and num_gpus and (is_short or run.cluster is None)
    needs, free = needs_of(models) if compares else None, []
    if needs:
        probe = ray.remote(free_on_gpus).options(num_gpus=1)
        found = ray.get([probe.remote() for _ in range(num_gpus if is_short else 1)])
        free = [gpus[0] for gpus in found if gpus] * (1 if is_short else num_gpus)
    return layout_of(run, needs, free)


def gpus_by_pool(groups: Sequence[Sequence[Stage]], layout: Layout | None = None, *, may_grow: bool) -> list[float]:
    """GPUs that one actor of each pool reserves, from the config and the resources that Ray has now.

    layout: with the shares of the groups with models, if it has some.
    may_grow: whether nodes may still join the cluster; then a shortage is only a warning.

    Raises a ConfigError if Ray cannot place every pool at once, and will not grow.
    """
    cluster = ray.cluster_resources()
    gpus = share_gpus(groups, cluster.get("GPU", 0.0))
    if layout is not None and layout.shares:
        shares = iter(layout.shares)
        gpus = [next(shares) if wants_gpu(group) else number for group, number in zip(groups, gpus, strict=True)]
    needed = {
        "GPU": sum(num * num_replicas(group)[0] for num, group in zip(gpus, groups, strict=True)),
        "CPU": IO_CPUS + sum(cpus_per_actor(group) * num_replicas(group)[0] for group in groups),
    }
    kinds = [kind for kind in map(accelerator_of, groups) if kind is not None]
    _check_fit(needed, kinds, cluster, may_grow=may_grow)
    return gpus


def reserved_by_one_call(models: Sequence[Replicas]) -> dict[str, Any]:
    """GPUs and CPUs of one call that runs a replica of each model in turn; options of a Ray task."""
    one_gpu = min(1.0, ray.cluster_resources().get("GPU", 0.0))
    asked = [_asked(model, one_gpu) for model in models]
    return {
        "num_gpus": max((one_gpu if number == "auto" else number for number in asked), default=0.0),
        "num_cpus": max((model.num_cpus for model in models), default=1.0),
        "accelerator_type": _one_accelerator(models),
    }


def share_gpus(groups: Sequence[Sequence[Stage]], num_gpus: float) -> list[float]:
    """GPUs of one actor of each pool, where the cluster has `num_gpus`.

    Pools that ask for a number get it. A pool on `auto` whose engine splits its model gets one GPU for each shard. The
    other pools on `auto` share the rest: one GPU for each actor if there are enough, else as many actors on each GPU as
    it takes to place them all. Without a GPU they get none.

    Raises a ConfigError if a number is lower than the shards of the model.
    """
    asked = [[_asked(s.model, num_gpus) for s in group if s.model is not None] for group in groups]
    fixed = [max((n for n in numbers if n != "auto"), default=0.0) for numbers in asked]
    on_auto = ["auto" in numbers for numbers in asked]
    counted = [(number, num_replicas(group)[0]) for number, group in zip(fixed, groups, strict=True)]
    left = num_gpus - sum(number * count for (number, count), auto in zip(counted, on_auto, strict=True) if not auto)
    num_sharing = sum(count for (_, count), auto in zip(counted, on_auto, strict=True) if auto)
    share = 0.0 if left < 1 or not num_sharing else 1.0 / ceil(num_sharing / int(left))
    return [max(share, n) if auto else n for n, auto in zip(fixed, on_auto, strict=True)]


def _asked(model: Replicas, num_gpus: float) -> Literal["auto"] | float:
    """GPUs that one replica asks for, in a cluster with `num_gpus`."""
    shards = num_shards(getattr(model, "engine_args", {}))
    if model.num_gpus == "auto":
        return float(shards) if shards > 1 and num_gpus else "auto"
    if 0 < model.num_gpus < shards:
        raise ConfigError(
            f"num_gpus: {model.num_gpus:g} does not fit engine_args, which splits the model into {shards}: "
            f"set num_gpus: {shards}, or lower engine_args.tensor_parallel_size."
        )
    return model.num_gpus


def _check_fit(
    needed: Mapping[str, float], accelerators: Sequence[str], cluster: Mapping[str, float], *, may_grow: bool
) -> None:
    problems, remedies = [], []
    short = [
        f"{number:g} {kind}s of {cluster.get(kind, 0.0):g}"
        for kind, number in needed.items()
        if number > cluster.get(kind, 0.0) + 1e-9
    ]
    if short:
        problems.append(f"the model pools need {' and '.join(short)} that there are")
        remedies.append("lower replicas, num_gpus or num_cpus, or set run.placement: colocated")
    missing = [kind for kind in dict.fromkeys(accelerators) if f"{_ACCELERATOR}{kind}" not in cluster]
    if missing:
        there = [name.removeprefix(_ACCELERATOR) for name in sorted(cluster) if name.startswith(_ACCELERATOR)]
        problems.append(f"no node has the accelerator_type {' or '.join(missing)}")
        remedies.append(f"set accelerator_type to {' or '.join(there)}" if there else "leave accelerator_type out")
    if not problems:
        return
    problem, remedy = "; ".join(problems), "; ".join(remedies)
    if not may_grow:
        raise ConfigError(f"{problem}: {remedy}.")
    _log.warning("%s: waiting for nodes to join. Without an autoscaler, %s.", problem, remedy)
