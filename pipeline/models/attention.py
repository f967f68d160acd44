"""Exact attention over a flat step, as an attention function that transformers models call.

A model whose attention is set to `PACKED_ATTENTION` reads the segments of the running step from `attending(...)`, not
from a mask or from position ids. Two kernels give the same numbers up to rounding:

    sdpa     torch's scaled_dot_product_attention, one call a segment; runs everywhere
    varlen   torch's variable-length flash attention, one call a layer; CUDA, half precision

Sliding windows go by positions. Softcaps and sinks are computed in float32, without a kernel of torch. A sink is a
learned score for each head: it takes weight and gives no value. Anything else that a model asks for is a ModelError,
and the engines then score its sequences one by one.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AttentionInterface

from pipeline.errors import ModelError
from pipeline.models.memory import to_device
from pipeline.models.packing import BLOCK_ROWS, Segment, Step

PACKED_ATTENTION: Final = "alignpot_packed"

Kernel = Literal["sdpa", "varlen"]

_SCORE_BLOCK: Final = 1024

_PADDING: Final = 64  # rows of padding that see each other

# Options of transformers without effect in an evaluation that has no cache.
_WITHOUT_EFFECT: Final = frozenset(
    {"cache_position", "dropout", "num_items_in_batch", "output_attentions", "output_hidden_states",
     "output_router_logits", "past_key_values", "position_embeddings", "position_ids", "return_dict", "use_cache"}
)  # fmt: skip


_VarlenPlan = tuple[torch.Tensor | None, tuple[torch.Tensor, torch.Tensor, int, int]]
"""The rows that the queries of each segment see, one segment after another; None if that is every row once, in order.
Then the cumulative numbers of queries and of keys, int32, shape (segments + 1,), and the most of each in a segment."""


class _Asked(NamedTuple):
    """What a layer asks of its attention besides causality."""

    scaling: float | None
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


@dataclass(slots=True, kw_only=True, eq=False)
class Attending:
    """The step that a forward is running on, and what its attention layers asked for."""

    step: Step
    kernel: Kernel
    segments: tuple[Segment, ...]
    calls: int = 0
    windowed_calls: int = 0
    masks: dict[tuple[Segment, int | None], torch.Tensor] = field(default_factory=dict)
    varlen: _VarlenPlan | None = None


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
    """Attention of one layer over the running step, as transformers calls it.

    `query` has shape (1, H, T, D); `key` and `value` (1, KV, T, D), where KV divides H. There is no mask: the step says
    who sees whom. Known options are `scaling`, `sliding_window`, `softcap` and `s_aux` (sinks, shape (H,)).

    Returns:
        Output of shape (1, T, H, D), without meaning in the rows of padding, and None for the weights.

    Raises a ModelError for a mask, or an option that is not known here.
    """
    state = _ATTENDING.get()
    if state is None:
        raise ModelError("packed attention was called outside a step")
    asked = _Asked(*(options.pop(name, None) for name in ("scaling", "sliding_window", "softcap", "s_aux")))
    causal = options.pop("is_causal", None)
    causal = getattr(module, "is_causal", True) if causal is None else causal
    unknown = sorted(k for k, v in options.items() if v is not None and k not in _WITHOUT_EFFECT)
    if attention_mask is not None or not causal or unknown:
        reason = f"options {unknown}" if unknown else "a mask" if attention_mask is not None else "no causal mask"
        raise ModelError(f"{type(module).__name__} wants attention with {reason}")
    state.calls += 1
    state.windowed_calls += asked.window is not None
    if state.kernel == "varlen" and asked.softcap is None and asked.sinks is None:
        if state.varlen is None:
            state.varlen = _varlen_plan(state.step.segments, query.shape[2], query.device)
        return _varlen_attention(state.varlen, (query, key, value), asked), None
    return _sdpa_attention(state, (query, key, value), asked), None


def _sdpa_attention(state: Attending, states: Sequence[torch.Tensor], asked: _Asked) -> torch.Tensor:
    query, key, value = states
    output = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
    for segment in state.segments:
        own = query[:, :, slice(*segment.query)]
        keys, values = _visible(key, segment), _visible(value, segment)
        mask = _mask(state, segment, asked.window, query)
        if asked.softcap is not None or asked.sinks is not None:
            attended = _float32_attention((own, keys, values), mask, asked)
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


def _blocks(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Cut long causal segments into blocks of queries: torch's CPU kernel computes all pairs of a segment."""
    blocks: list[Segment] = []
    for segment in segments:
        begin, end = segment.query
        cuts = [*range(begin, end, BLOCK_ROWS), end] if segment.is_first else [begin, end]
        for at, until in pairwise(cuts):
            before = (*segment.context, (begin, at)) if at > begin else segment.context
            blocks.append(Segment(context=before, query=(at, until)))
    return tuple(blocks)


def _visible(states: torch.Tensor, segment: Segment) -> torch.Tensor:
    ranges = [*segment.context, segment.query]
    if all(before[1] == after[0] for before, after in pairwise(ranges)):
        return states[:, :, ranges[0][0] : ranges[-1][1]]
    return torch.cat([states[:, :, slice(*rows)] for rows in ranges], dim=2)


def _mask(state: Attending, segment: Segment, window: int | None, query: torch.Tensor) -> torch.Tensor | None:
    """Additive mask of shape (queries, keys), or None where plain causal attention is meant."""
    prefix, num_queries = segment.num_context, segment.num_queries
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


def _float32_attention(states: Sequence[torch.Tensor], mask: torch.Tensor | None, asked: _Asked) -> torch.Tensor:
    """Attention of query, key and value states with softcap or sinks, in float32, in blocks of queries."""
    query, *others = states
    keys, values = (s.float().repeat_interleave(query.shape[1] // s.shape[1], dim=1) for s in others)
    if mask is None:
        mask = torch.full((query.shape[2], keys.shape[2]), float("-inf"), device=query.device).triu_(1)
    blocks = zip(torch.split(query, _SCORE_BLOCK, dim=2), torch.split(mask, _SCORE_BLOCK), strict=True)
    attended = [_weights(block, keys, hidden, asked) @ values for block, hidden in blocks]
    return torch.cat(attended, dim=2).to(query.dtype)


def _weights(query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, asked: _Asked) -> torch.Tensor:
    scale = query.shape[-1] ** -0.5 if asked.scaling is None else asked.scaling
    scores = query.float() @ keys.transpose(2, 3)
    if asked.softcap is None:
        scores *= scale
    else:
        scores.mul_(scale / asked.softcap).tanh_().mul_(asked.softcap)
    scores += mask
    if asked.sinks is None:
        return scores.softmax(dim=-1)
    sinks = asked.sinks.float().view(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)
    return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]


def _varlen_plan(segments: Sequence[Segment], num_rows: int, device: torch.device) -> _VarlenPlan:
    """The plan of segments whose queries cover the first rows of a step in order. The rows after them are padding."""
    padding = range(segments[-1].query[1], num_rows, _PADDING)
    segments = [*segments, *(Segment(context=(), query=(at, min(at + _PADDING, num_rows))) for at in padding)]
    num_queries = [s.num_queries for s in segments]
    num_keys = [s.num_context + s.num_queries for s in segments]
    gather = None
    if any(s.context for s in segments):
        seen = np.concatenate([np.arange(*rows) for s in segments for rows in (*s.context, s.query)])
        gather = to_device(seen, device)
    queries, keys = (to_device([0, *n], device).cumsum(0, dtype=torch.int32) for n in (num_queries, num_keys))
    return gather, (queries, keys, max(num_queries), max(num_keys))


def _varlen_attention(plan: _VarlenPlan, states: Sequence[torch.Tensor], asked: _Asked) -> torch.Tensor:
    from torch.nn.attention import varlen

    query, key, value = (s[0].transpose(0, 1) for s in states)
    gather, lengths = plan
    if gather is not None:
        key, value = key.index_select(0, gather), value.index_select(0, gather)
    options: dict[str, Any] = {"enable_gqa": key.shape[1] != query.shape[1], "num_splits": 1}
    attended: Any = varlen.varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        *lengths,
        scale=asked.scaling,
        window_size=(-1 if asked.window is None else asked.window - 1, 0),  # causal, aligned to the last key
        **{name: given for name, given in options.items() if name in _varlen_options()},
    )
    output: torch.Tensor = attended[None]
    return output


@cache
def _varlen_options() -> frozenset[str]:
    """Parameters of this torch's kernel. One without `enable_gqa` takes grouped queries anyway and never splits."""
    from torch.nn.attention import varlen

    return frozenset(inspect.signature(varlen.varlen_attn).parameters)


# It reads which step is running. A compiled layer must not treat that as a constant.
AttentionInterface.register(PACKED_ATTENTION, torch.compiler.disable(packed_attention))  # type: ignore[no-untyped-call]
