"""What runs in another way inside a decoder: the last feed-forward, the last norm, and compiled layers.

Nothing that follows attention in the last layer goes from one row to another. So rows that no head reads need no
feed-forward there: those of prompts, and all but one of a dialogue that gets a reward.

On request torch compiles the layers: norms, rotary embeddings, activations and residual sums then run as a few loops
instead of one pass over memory for each operation; matrix products and attention keep their kernels. Sums change by a
rounding, and depend on batch composition no more than without. Layers share their code, so one compilation serves all
of a kind and any number of tokens; torch keeps the result on disk for the next process.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from torch.func import functional_call

from pipeline.models.memory import to_device
from pipeline.models.packing import ROW_MULTIPLE, Int64Array

_FEED_FORWARDS: Final = ("mlp", "feed_forward", "block_sparse_moe")


@dataclass(slots=True, kw_only=True, eq=False)
class _Rows:
    """Which rows of a forward are read, and how many there are."""

    read: Int64Array
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
    feed_forward = next((found for name in _FEED_FORWARDS if (found := getattr(layer, name, None)) is not None), None)
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
    token = _ROWS.set(_Rows(read=rows, padded=padded))
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
    num_rows = len(rows.read)
    whole = states.new_zeros(1, rows.num_tokens, states.shape[-1])
    whole.index_copy_(1, rows.on_device[:num_rows], states[:, :num_rows])
    return (whole, *others) if isinstance(given, tuple) else whole


class LastNorm:
    """A decoder's last module, usually its final norm, computed again in float32 on the rows that a head reads.

    In half precision the model's own norm rounds away what a float32 head can use: a twentieth of the error of
    SmolLM2's margins. The rows are few, so the cost is small. Entered for the time of one forward.
    """

    def __init__(self, decoder: torch.nn.Module) -> None:
        self._modules = [module for module in decoder.children() if not any(module.children())]
        self._hooks: list[Any] = []
        self._calls: list[tuple[torch.nn.Module, torch.Tensor, torch.Tensor]] = []

    def __enter__(self) -> Self:
        self._hooks = [m.register_forward_hook(self._remember, with_kwargs=True) for m in self._modules]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def in_float32(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Rows of `hidden`, shape (T, d), in float32 if one of the modules computed it; else as they are."""
        for module, taken, given in self._calls:
            if given.data_ptr() == hidden.data_ptr():
                values = {name: p.float() for name, p in module.named_parameters()}
                found: torch.Tensor = functional_call(module, values, (taken[0].index_select(0, rows).float(),))
                return found
        return hidden.index_select(0, rows)

    def _remember(self, module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any], given: Any) -> None:
        if len(args) == 1 and not options and all(torch.is_tensor(t) and t.ndim == 3 for t in (*args, given)):
            self._calls.append((module, args[0], given))
