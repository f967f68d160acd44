"""Torch's variable-length flash attention over the segments of a step: one call a layer, on CUDA in half precision."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import torch

from pipeline.models.memory import to_device
from pipeline.models.packing import Segment

_PADDING: Final = 64  # rows of padding that see each other


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VarlenPlan:
    """The segments as the kernel takes them: gathered keys, cumulative lengths.

    Attributes:
        gather: rows of the step that the queries of each segment see, one segment after another, int64; None where
            that is every row once, in order.
        queries: cumulative number of queries, int32, shape (segments + 1,); `keys` the same of `gather`.
        longest_query: most queries of a segment; `longest_key` the same of keys.
    """

    gather: torch.Tensor | None
    queries: torch.Tensor
    keys: torch.Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, segments: Sequence[Segment], num_rows: int, device: torch.device) -> "VarlenPlan":
        """Plan of the segments of a step, whose queries cover its rows in order; rows after the last are padding."""
        padding = range(segments[-1].query[1], num_rows, _PADDING)
        segments = [*segments, *(Segment(context=(), query=(at, min(at + _PADDING, num_rows))) for at in padding)]
        num_queries = [s.num_queries for s in segments]
        num_keys = [s.num_context + s.num_queries for s in segments]
        gather = None
        if any(s.context for s in segments):
            seen = np.concatenate([np.arange(*rows) for s in segments for rows in (*s.context, s.query)])
            gather = to_device(seen, device)
        queries, keys = (to_device([0, *n], device).cumsum(0, dtype=torch.int32) for n in (num_queries, num_keys))
        return cls(gather=gather, queries=queries, keys=keys, longest_query=max(num_queries), longest_key=max(num_keys))


def varlen_attention(
    plan: VarlenPlan, states: Sequence[torch.Tensor], *, scaling: float | None, window: int | None
) -> torch.Tensor:
    """Attention of query, key and value states of shape (1, heads, T, D); output of shape (1, T, H, D)."""
    from torch.nn.attention import varlen

    query, key, value = (s[0].transpose(0, 1) for s in states)
    if plan.gather is not None:
        key, value = key.index_select(0, plan.gather), value.index_select(0, plan.gather)
    options: dict[str, Any] = {"enable_gqa": key.shape[1] != query.shape[1], "num_splits": 1}
    attended: Any = varlen.varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        plan.queries,
        plan.keys,
        plan.longest_query,
        plan.longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # causal, aligned to the last key
        **{name: given for name, given in options.items() if name in _known_options()},
    )
    output: torch.Tensor = attended[None]
    return output


@cache
def _known_options() -> frozenset[str]:
    """Parameters of this torch's kernel. Where it has none for grouped queries it takes them, and it never splits."""
    from torch.nn.attention import varlen

    return frozenset(inspect.signature(varlen.varlen_attn).parameters)
