"""How the models of a run share its GPUs, by measured bytes: apart, together in one process, or one after another.

    bytes of each model (headers and config of its files) + free bytes of each GPU -> layout

`choose_layout` is a pure function. The weights are counted to the byte. The working memory is an estimate from the
sizes of the layers: an engine halves its steps when memory is full, so it only has to be about right. It has not been
compared with a GPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Final, Literal

from pipeline.config import Replicas, TorchModel, VllmModel
from pipeline.errors import ConfigError
from pipeline.models.fingerprints import num_bytes

_FULL_STEP: Final = 32768
"""Tokens of a step on a GPU without `token_budget`, as in `engine`."""
_LEAST_STEP: Final = 1024
"""Tokens of the smallest steps that a run should come down to."""
_HEAD_BYTES: Final = 3 * 512 << 20
"""Logits of one chunk (`logprobs`), and two more tensors like them."""
_CONTEXT: Final = 1 << 30
"""What CUDA and its libraries take in a process, with room for gaps. A round number, not a measured one."""
_UNITS: Final = 1000
"""Shares of a GPU are multiples of 1 / _UNITS."""


Placement = Literal["pooled", "colocated", "in_turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes that one replica takes of a GPU: its weights, and what full steps and the smallest ones take beside."""

    role: str
    weights: int
    work: int
    least_work: int
    replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """placement: as `run.placement`. shares: GPUs of one actor of each model (pooled) or of the actors that hold all.

    Without shares the GPUs are shared as ever, by the number of replicas.
    """

    placement: Placement
    shares: tuple[float, ...] = ()


def choose_layout(needs: Sequence[Need], free: Sequence[int], *, one_process: bool = False) -> Layout:
    """The first layout that fits, of pooled, colocated and in_turn.

    Args:
        needs: of the models that want a GPU.
        free: bytes of each GPU. The smallest counts: Ray may put any actor on it.
        one_process: all models are in this process, on the first GPU.

    Raises a ConfigError if a model does not fit a GPU by itself, or the replicas of one process do not fit.
    """
    at_once: Placement = "colocated" if one_process else "pooled"
    if not needs or not free:
        return Layout(placement=at_once)
    room = free[0] if one_process else min(free)
    for need in needs:
        _check(need, room)
    num_gpus = 1 if one_process else len(free)
    if len(needs) == 1 if one_process else sum(need.replicas for need in needs) <= num_gpus:
        return Layout(placement=at_once, shares=(1.0,) * len(needs))
    if not one_process:
        shares = _shares([(_alone(need), need.replicas) for need in needs], room, num_gpus)
        if shares is not None:
            return Layout(placement="pooled", shares=shares)
    copies = 1 if one_process else max(need.replicas for need in needs)
    together = sum(need.weights for need in needs) + max(need.work for need in needs) + _CONTEXT
    in_turn = max(need.weights + need.least_work for need in needs) + _CONTEXT
    sizes: dict[Placement, int] = {"colocated": together, "in_turn": in_turn}
    for placement, size in sizes.items():
        shares = _shares([(size, copies)], room, num_gpus)
        if shares is not None:
            return Layout(placement=placement, shares=shares)
    raise ConfigError(
        f"{copies} replicas that take {_gb(in_turn)} each do not fit on {num_gpus} GPUs with {_gb(room)} free: lower "
        f"replicas to {num_gpus * (room // in_turn)}."
    )


def needs_of(models: Mapping[str, Replicas]) -> list[Need] | None:
    """What the models take, by role; those with `num_gpus: 0` are left out.

    None if that is not for `auto` to say: resources are set by hand, vLLM takes its share, or bytes are not known.
    Reads headers and configurations, no weights.
    """
    found = []
    for role, model in models.items():
        if model.num_gpus == 0:
            continue
        by_hand = model.num_gpus != "auto" or model.accelerator_type is not None
        if by_hand or not isinstance(model, TorchModel) or isinstance(model, VllmModel):
            return None
        weights = num_bytes(model)
        if weights is None:
            return None
        found.append(_need(role, model, weights))
    return found


def in_words(layout: Layout, needs: Sequence[Need], free: Sequence[int]) -> str:
    """For people: where the models go, and why."""
    sizes = ", ".join(f"{need.role} {_gb(need.weights)}" for need in needs)
    how = {
        "pooled": "all models at once, each in a process of its own",
        "colocated": "all models at once, in one process",
        "in_turn": "one model at a time",
    }[layout.placement]
    memory = f"; weights: {sizes}; free on each GPU: {', '.join(map(_gb, free))}" if needs and free else ""
    return f"run.placement: {layout.placement} ({how}{memory})."


def _need(role: str, model: TorchModel, weights: int) -> Need:
    from pipeline.models.loading import load_configuration

    config = load_configuration(model).get_text_config()
    most = model.token_budget or _FULL_STEP
    least = most if model.deterministic else min(most, _LEAST_STEP)
    work, least_work = (_HEAD_BYTES + tokens * _bytes_per_token(config, model.dtype) for tokens in (most, least))
    return Need(role=role, weights=weights, work=work, least_work=least_work, replicas=model.replica_range[0])


def _bytes_per_token(config: Any, dtype: str) -> int:
    """What a decoder layer holds of a token at its fullest: two states and four rows of the feed-forward."""
    hidden = int(getattr(config, "hidden_size", None) or 4096)
    wide = getattr(config, "moe_intermediate_size", None)
    experts = int(getattr(config, "num_experts_per_tok", None) or 1)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    width = max(int(inner), int(wide or inner) * experts)
    return (2 * hidden + 4 * width) * (4 if dtype == "float32" else 2)


def _alone(need: Need) -> int:
    return need.weights + need.work + _CONTEXT


def _check(need: Need, room: int) -> None:
    least = need.weights + need.least_work + _CONTEXT
    if least > room:
        raise ConfigError(
            f"{need.role} takes {_gb(least)} of a GPU ({_gb(need.weights)} of weights), and {_gb(room)} are free. "
            "End what else uses the GPU, take a larger one, split the model among several by backend vllm, or set "
            f"{need.role}.num_gpus: 0 for the CPU. run.placement: pooled tries it all the same."
        )


def _shares(pools: Sequence[tuple[int, int]], room: int, num_gpus: int) -> tuple[float, ...] | None:
    """GPUs of one actor of each pool of (bytes, actors), so that no GPU gets more than `room`; None if they do not fit.

    Equal shares if each actor fits into one, else shares by bytes. Ray may start the actors in any order, on any GPU
    with enough left, so the last one must find a place whatever the others did.
    """
    num_actors = sum(actors for _, actors in pools)
    per_gpu = ceil(num_actors / num_gpus)
    if all(size * per_gpu <= room for size, _ in pools):
        return (1.0 / per_gpu,) * len(pools)
    units = [ceil(_UNITS * size / room) for size, _ in pools]
    every = [unit for unit, (_, actors) in zip(units, pools, strict=True) for _ in range(actors)]
    if max(units) > _UNITS or not all(_finds_a_place(unit, every, num_gpus) for unit in {*units}):
        return None
    return tuple(unit / _UNITS for unit in units)


def _finds_a_place(unit: int, every: Sequence[int], num_gpus: int) -> bool:
    """Whether an actor of this size finds a GPU after all others, wherever these are.

    It does not if each GPU holds more than it leaves free for it. The others can do that only if together they are at
    least as large as `num_gpus` times the smallest such load.
    """
    others = [*every]
    others.remove(unit)
    loads = 1  # bit n: some of the others make n
    for other in others:
        loads |= loads << other
    blocking = next((n for n in range(_UNITS - unit + 1, _UNITS + 1) if loads >> n & 1), None)
    return blocking is None or sum(others) < num_gpus * blocking


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
