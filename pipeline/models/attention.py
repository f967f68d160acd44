"""Exact attention over a flat step, as an attention function that transformers models call.

A model whose attention is set to `PACKED_ATTENTION` reads the segments of the running step from
`attending(...)`, not from a mask or from position ids. Two kernels give the same numbers up to rounding:

    sdpa     torch's scaled_dot_product_attention, one call a segment; runs everywhere
    varlen   torch's variable-length flash attention, one call a layer; CUDA, half precision

Sliding windows go by positions. Logit softcaps are computed in float32. Whatever a model asks for beyond
that raises UnsupportedAttentionError, upon which the engines score its sequences one by one.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AttentionInterface

from pipeline.errors import ModelError
from pipeline.models.packing import Segment, Step

PACKED_ATTENTION: Final = "alignpot_packed"

Kernel = Literal["sdpa", "varlen"]

_QUERY_BLOCK: Final = 64

# What transformers passes along to every attention and what changes nothing in an evaluation without a cache.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "cache_position",
        "dropout",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


class UnsupportedAttentionError(ModelError):
    """The model asks attention for something that the packed kernels do not compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a layer asks of its attention besides causality."""

    scaling: float | None
    window: int | None
    softcap: float | None


@dataclass(slots=True, kw_only=True, eq=False)
class Attending:
    """The step that a forward is running on, and what its attention layers asked for."""

    step: Step
    kernel: Kernel
    segments: tuple[Segment, ...]
    calls: int = 0
    windowed_calls: int = 0
    masks: dict[tuple[Segment, int | None], torch.Tensor] = field(default_factory=dict)
    varlen: "_Varlen | None" = None


_ATTENDING: ContextVar[Attending | None] = ContextVar("alignpot_attending", default=None)


@contextmanager
def attending(step: Step, kernel: Kernel, device: torch.device) -> Iterator[Attending]:
    """Make `step` the one that packed attention works on, for the time of one forward."""
    segments = _blocks(step.segments) if device.type == "cpu" else step.segments
    state = Attending(step=step, kernel=kernel, segments=segments)
    token = _ATTENDING.set(state)
    try:
        yield state
    finally:
        _ATTENDING.reset(token)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over the running step.

    Args:
        module: the layer's attention module.
        query: shape (1, H, T, D).
        key: shape (1, KV, T, D), where KV divides H.
        value: like key.
        attention_mask: must be None; the step says who sees whom.
        options: `scaling`, `sliding_window` and `softcap` as transformers passes them.

    Returns:
        Output of shape (1, T, H, D), zero in the rows of padding, and None for the weights.

    Raises:
        UnsupportedAttentionError: a mask, or an option that is not known here.
    """
    state = _ATTENDING.get()
    if state is None:
        raise UnsupportedAttentionError("packed attention was called outside a step")
    asked = _Asked(
        scaling=options.pop("scaling", None),
        window=options.pop("sliding_window", None),
        softcap=options.pop("softcap", None),
    )
    _refuse_unknown(module, attention_mask, options)
    state.calls += 1
    state.windowed_calls += asked.window is not None
    if state.kernel == "varlen" and asked.softcap is None:
        return _varlen_attention(state, (query, key, value), asked), None
    return _sdpa_attention(state, (query, key, value), asked), None


def _sdpa_attention(state: Attending, states: Sequence[torch.Tensor], asked: _Asked) -> torch.Tensor:
    query, key, value = states
    output = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
    for segment in state.segments:
        own = query[:, :, slice(*segment.query)]
        keys, values = _visible(key, segment), _visible(value, segment)
        mask = _mask(state, segment, asked.window, query)
        if asked.softcap is not None:
            attended = _softcapped((own, keys, values), mask, asked)
        else:
            attended = F.scaled_dot_product_attention(
                own,
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=asked.scaling,
                enable_gqa=key.shape[1] != query.shape[1],
            )
        output[:, slice(*segment.query)] = attended.transpose(1, 2)
    return output


def _refuse_unknown(module: torch.nn.Module, attention_mask: torch.Tensor | None, options: dict[str, Any]) -> None:
    is_causal = options.pop("is_causal", None)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    unknown = sorted(k for k, v in options.items() if v is not None and k not in _WITHOUT_EFFECT)
    if attention_mask is not None or not is_causal or unknown:
        reason = f"options {unknown}" if unknown else "a mask" if attention_mask is not None else "no causal mask"
        raise UnsupportedAttentionError(f"{type(module).__name__} wants attention with {reason}")


def _blocks(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Cut long causal segments into blocks of queries: torch's CPU kernel computes all pairs of short ones."""
    blocks: list[Segment] = []
    for segment in segments:
        begin, end = segment.query
        if segment.prefix[0] < segment.prefix[1]:
            blocks.append(segment)
            continue
        cuts = [*range(begin, end, _QUERY_BLOCK), end]
        blocks += [Segment(prefix=(begin, at), query=(at, until)) for at, until in pairwise(cuts)]
    return tuple(blocks)


def _visible(states: torch.Tensor, segment: Segment) -> torch.Tensor:
    prefix, query = segment.prefix, segment.query
    if prefix[0] == prefix[1]:
        return states[:, :, slice(*query)]
    if prefix[1] == query[0]:
        return states[:, :, prefix[0] : query[1]]
    return torch.cat([states[:, :, slice(*prefix)], states[:, :, slice(*query)]], dim=2)


def _mask(state: Attending, segment: Segment, window: int | None, query: torch.Tensor) -> torch.Tensor | None:
    """Additive mask of shape (queries, keys), or None where plain causal attention is meant."""
    prefix = segment.prefix[1] - segment.prefix[0]
    num_queries = segment.query[1] - segment.query[0]
    if window is not None and window >= prefix + num_queries:
        window = None
    if prefix == 0 and window is None:
        return None
    mask = state.masks.get((segment, window))
    if mask is None:
        at = torch.arange(prefix, prefix + num_queries, device=query.device)[:, None]
        seen = torch.arange(prefix + num_queries, device=query.device)[None, :]
        hidden = seen > at
        if window is not None:
            hidden |= seen <= at - window
        mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, float("-inf"))
        state.masks[segment, window] = mask
    return mask


def _softcapped(states: Sequence[torch.Tensor], mask: torch.Tensor | None, asked: _Asked) -> torch.Tensor:
    """Attention of query, key and value states whose scores are capped at +-softcap, in float32."""
    assert asked.softcap is not None  # noqa: S101
    query, *others = states
    keys, values = (s.float().repeat_interleave(query.shape[1] // s.shape[1], dim=1) for s in others)
    scale = query.shape[-1] ** -0.5 if asked.scaling is None else asked.scaling
    scores = torch.tanh(query.float() @ keys.transpose(2, 3) * (scale / asked.softcap)) * asked.softcap
    if mask is None:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu_(1)
        scores.masked_fill_(hidden, float("-inf"))
    else:
        scores += mask
    return (scores.softmax(dim=-1) @ values).to(query.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Varlen:
    """The segments as variable-length flash attention takes them: gathered keys, cumulative lengths."""

    gather: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, step: Step, device: torch.device) -> "_Varlen":
        num_queries = [s.query[1] - s.query[0] for s in step.segments]
        num_keys = [n + s.prefix[1] - s.prefix[0] for n, s in zip(num_queries, step.segments, strict=True)]
        gather = [torch.arange(*r, device=device) for s in step.segments for r in (s.prefix, s.query)]
        queries, keys = (
            torch.tensor([0, *n], device=device).cumsum(0, dtype=torch.int32) for n in (num_queries, num_keys)
        )
        return cls(
            gather=torch.cat(gather),
            queries=queries,
            keys=keys,
            longest_query=max(num_queries),
            longest_key=max(num_keys),
        )


def _varlen_attention(state: Attending, states: Sequence[torch.Tensor], asked: _Asked) -> torch.Tensor:
    from torch.nn.attention import varlen

    query, key, value = states
    plan = state.varlen = state.varlen or _Varlen.of(state.step, query.device)
    num_tokens = int(state.step.last_query)
    options: dict[str, Any] = {"scale": asked.scaling, "enable_gqa": key.shape[1] != query.shape[1]}
    if "num_splits" in inspect.signature(varlen.varlen_attn).parameters:
        options["num_splits"] = 1  # one split makes a sequence's result independent of the others
    attended: Any = varlen.varlen_attn(
        query[0].transpose(0, 1)[:num_tokens].contiguous(),
        key[0].transpose(0, 1)[plan.gather],
        value[0].transpose(0, 1)[plan.gather],
        plan.queries,
        plan.keys,
        plan.longest_query,
        plan.longest_key,
        window_size=(-1 if asked.window is None else asked.window - 1, 0),  # causal, aligned to the last key
        **options,
    )
    output = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
    output[0, :num_tokens] = attended
    return output


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
