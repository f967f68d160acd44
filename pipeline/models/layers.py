"""The layers of a decoder, and the feed-forward of the last one on the rows that a head reads.

Nothing that follows attention in the last layer goes from one row to another, so rows that no head reads need no
feed-forward there: those of prompts, and all but one of a dialogue that gets a reward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from pipeline.models.packing import ROW_MULTIPLE, Int64Array
from pipeline.models.transfer import to_device

_FEED_FORWARDS: Final = ("mlp", "feed_forward", "block_sparse_moe")


@dataclass(slots=True, kw_only=True, eq=False)
class _Rows:
    """Which rows of a forward are read, and how many there are."""

    read: Int64Array
    padded: npt.NDArray[np.int64]
    num_tokens: int = 0
    on_device: torch.Tensor | None = None


_ROWS: ContextVar[_Rows | None] = ContextVar("alignpot_rows", default=None)


def layers_of(decoder: torch.nn.Module, num_layers: int | None) -> torch.nn.ModuleList | None:
    """The list of a decoder's layers in their order, or None where there is no list of as many (or it is not known)."""
    lists = (m for m in decoder.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == num_layers)
    return next(lists, None)


def prepare_last_layer(decoder: torch.nn.Module, num_layers: int | None) -> None:
    """Let the feed-forward of the last layer heed `only_rows`, where it is a module under a name known here."""
    layers = layers_of(decoder, num_layers)
    last = layers[-1] if layers else None
    feed_forward = next((found for name in _FEED_FORWARDS if (found := getattr(last, name, None)) is not None), None)
    if feed_forward is not None and _select not in feed_forward._forward_pre_hooks.values():  # noqa: SLF001
        feed_forward.register_forward_pre_hook(_select)
        feed_forward.register_forward_hook(_spread)


@contextmanager
def only_rows(rows: Int64Array) -> Iterator[None]:
    """Let prepared feed-forwards compute some rows of states of shape (1, T, d) for a while; the others become zero.

    Args:
        rows: which, ascending, shape (R,).
    """
    # As many as a matrix product on CPU wants for a row not to depend on its company (see packing).
    padded = (
        np.pad(rows, (0, -len(rows) % ROW_MULTIPLE), mode="edge") if len(rows) else np.zeros(ROW_MULTIPLE, np.int64)
    )
    token = _ROWS.set(_Rows(read=rows, padded=padded))
    try:
        yield
    finally:
        _ROWS.reset(token)


# The rows change from step to step, which a compiled layer must not take for a constant.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _select(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    rows = _ROWS.get()
    if rows is None or not args or args[0].ndim != 3:
        return None
    rows.num_tokens = args[0].shape[1]
    rows.on_device = to_device(rows.padded, args[0].device)
    return (args[0].index_select(1, rows.on_device), *args[1:])


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _spread(_: torch.nn.Module, __: tuple[Any, ...], given: Any) -> Any:
    rows = _ROWS.get()
    if rows is None or rows.on_device is None:
        return given
    states, *others = given if isinstance(given, tuple) else (given,)
    num_rows = len(rows.read)
    whole = states.new_zeros(1, rows.num_tokens, states.shape[-1])
    whole.index_copy_(1, rows.on_device[:num_rows], states[:, :num_rows])
    return (whole, *others) if isinstance(given, tuple) else whole
