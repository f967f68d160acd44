"""Torch's variable-length flash attention over the segments of a step: one call a layer, on CUDA in half precision."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.models.packing import Segment
from pipeline.models.transfer import to_device


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VarlenPlan:
    """The segments as the kernel takes them: gathered keys, cumulative lengths.

    Attributes:
        gather: rows of the step that the queries of each segment see, one segment after another, int64.
        queries: cumulative number of queries, int32, shape (segments + 1,); `keys` the same of `gather`.
        keys: see `queries`.
        longest_query: most queries of a segment; `longest_key` the same of keys.
        longest_key: see `longest_query`.
        num_tokens: rows of the step without its padding.
    """

    gather: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    longest_query: int
    longest_key: int
    num_tokens: int

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> "VarlenPlan":
        """Plan of the segments of a step, whose queries cover its rows in order."""
        num_queries = [s.num_queries for s in segments]
        num_keys = [s.num_context + s.num_queries for s in segments]
        gather = np.concatenate([np.arange(*rows) for s in segments for rows in (*s.context, s.query)])
        queries, keys = (to_device([0, *n], device).cumsum(0, dtype=torch.int32) for n in (num_queries, num_keys))
        return cls(
            gather=to_device(gather, device),
            queries=queries,
            keys=keys,
            longest_query=max(num_queries),
            longest_key=max(num_keys),
            num_tokens=sum(num_queries),
        )


def varlen_attention(
    plan: VarlenPlan, states: Sequence[torch.Tensor], *, scaling: float | None, window: int | None
) -> torch.Tensor:
    """Attention of query, key and value states of shape (1, heads, T, D); output of shape (1, T, H, D)."""
    from torch.nn.attention import varlen

    query, key, value = states
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": key.shape[1] != query.shape[1]}
    if "num_splits" in inspect.signature(varlen.varlen_attn).parameters:
        options["num_splits"] = 1  # one split makes a sequence's result independent of the others
    attended: Any = varlen.varlen_attn(
        query[0].transpose(0, 1)[: plan.num_tokens].contiguous(),
        key[0].transpose(0, 1)[plan.gather],
        value[0].transpose(0, 1)[plan.gather],
        plan.queries,
        plan.keys,
        plan.longest_query,
        plan.longest_key,
        window_size=(-1 if window is None else window - 1, 0),  # causal, aligned to the last key
        **options,
    )
    output = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
    output[0, : plan.num_tokens] = attended
    return output
