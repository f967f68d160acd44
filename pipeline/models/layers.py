"""Changes to how a decoder runs: the last feed-forward, the last norm, and compiled layers.

After attention, nothing in the last layer goes from one row to another. So rows that no head reads need no feed-forward
there: the rows of prompts, and all but one row of a dialogue that gets a reward.

On request torch compiles the layers. Norms, rotary embeddings, activations and residual sums then run as a few loops
instead of one pass over memory for each operation. Matrix products and attention keep their kernels. Sums change by a
rounding, and depend on batch composition no more than before. Layers share their code, so one compilation serves all
layers of a kind and any number of tokens. Torch keeps the result on disk for the next process.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.func import functional_call

from pipeline.models.memory import to_device
from pipeline.models.packing import ROW_MULTIPLE, Int64Array

_FEED_FORWARDS: Final = ("mlp", "feed_forward", "block_sparse_moe")


@dataclass(slots=True, kw_only=True, eq=False)
class _Rows:
    """How many rows of a forward are read, which ones (padded), and how many rows there are."""

    num_read: int
    padded: Int64Array
    num_tokens: int = 0
    on_device: torch.Tensor | None = None


_ROWS: ContextVar[_Rows | None] = ContextVar("alignpot_rows", default=None)


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled layers as they were written, for a while."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def prepare_last_layer(layer: torch.nn.Module) -> None:
    """Let the last layer's feed-forward obey `only_rows`, if it is a module under a name known here."""
    feed_forward = next((getattr(layer, name) for name in _FEED_FORWARDS if getattr(layer, name, None)), None)
    if feed_forward is not None and _select not in feed_forward._forward_pre_hooks.values():  # noqa: SLF001
        feed_forward.register_forward_pre_hook(_select)
        feed_forward.register_forward_hook(_spread)


@contextmanager
def only_rows(rows: Int64Array) -> Iterator[None]:
    """Let prepared feed-forwards compute some rows of states of shape (1, T, d) for a while; the others become zero.

    Args:
        rows: ascending, shape (R,).
    """
    # As many as a matrix product on CPU needs for a row not to depend on the other rows (see packing).
    padded = np.zeros(ROW_MULTIPLE, np.int64)
    if len(rows):
        padded = np.pad(rows, (0, -len(rows) % ROW_MULTIPLE), mode="edge")
    token = _ROWS.set(_Rows(num_read=len(rows), padded=padded))
    try:
        yield
    finally:
        _ROWS.reset(token)


# The rows change from step to step, so a compiled layer must not treat them as a constant.
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
    whole = states.new_zeros(1, rows.num_tokens, states.shape[-1])
    whole.index_copy_(1, rows.on_device[: rows.num_read], states[:, : rows.num_read])
    return (whole, *others) if isinstance(given, tuple) else whole


@contextmanager
def last_norm_in_float32(decoder: torch.nn.Module) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Compute a decoder's last module, usually its final norm, again in float32, on the rows that a head reads.

    In half precision the model's own norm rounds away what a float32 head can use: a twentieth of the error of
    SmolLM2's margins. The rows are few, so the cost is small. Entered for the time of one forward.

    Yields a function of the last hidden states, shape (T, d), and row numbers. It gives these rows: in float32 if one
    of the decoder's modules computed them, else as they are.
    """
    calls: list[tuple[torch.nn.Module, torch.Tensor, torch.Tensor]] = []

    def remember(module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any], given: Any) -> None:
        if len(args) == 1 and not options and all(torch.is_tensor(t) and t.ndim == 3 for t in (*args, given)):
            calls.append((module, args[0], given))

    def in_float32(hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        for module, taken, given in calls:
            if given.data_ptr() == hidden.data_ptr():
                values = {name: p.float() for name, p in module.named_parameters()}
                found: torch.Tensor = functional_call(module, values, (taken[0].index_select(0, rows).float(),))
                return found
        return hidden.index_select(0, rows)

    modules = [module for module in decoder.children() if not any(module.children())]
    hooks = [module.register_forward_hook(remember, with_kwargs=True) for module in modules]
    try:
        yield in_float32
    finally:
        for hook in hooks:
            hook.remove()
