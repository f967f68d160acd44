"""The layers of a decoder, and the feed-forward of the last one on the rows that a head reads.

Nothing that follows attention in the last layer goes from one row to another, so rows that no head reads need no
feed-forward there: those of prompts, and all but one of a dialogue that gets a reward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch

from pipeline.models.packing import ROW_MULTIPLE, Int64Array
from pipeline.models.transfer import to_device

_FEED_FORWARDS: Final = ("mlp", "feed_forward", "block_sparse_moe")


def layers_of(decoder: torch.nn.Module, num_layers: int) -> torch.nn.ModuleList | None:
    """The list of a decoder's layers in their order, or None where there is no list of as many."""
    lists = (m for m in decoder.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == num_layers)
    return next(lists, None)


def last_feed_forward(decoder: torch.nn.Module, num_layers: int) -> torch.nn.Module | None:
    """The feed-forward of the last layer, or None where it is no module under a name known here."""
    layers = layers_of(decoder, num_layers)
    if layers is None:
        return None
    return next((found for name in _FEED_FORWARDS if (found := getattr(layers[-1], name, None)) is not None), None)


@contextmanager
def only_rows(feed_forward: torch.nn.Module | None, rows: Int64Array) -> Iterator[None]:
    """Let a feed-forward compute some rows of its input for a while; it gives zeros in the others.

    Args:
        feed_forward: takes and gives states of shape (1, T, d); None does nothing.
        rows: which, ascending, shape (R,).
    """
    if feed_forward is None:
        yield
        return
    some = _Rows(rows)
    before = feed_forward.register_forward_pre_hook(some.select)
    after = feed_forward.register_forward_hook(some.spread)
    try:
        yield
    finally:
        before.remove()
        after.remove()


class _Rows:
    """Forward hooks of a feed-forward."""

    def __init__(self, rows: Int64Array) -> None:
        self._num_rows = len(rows)
        # As many as a matrix product on CPU wants for a row not to depend on its company (see packing).
        self._padded = np.pad(rows, (0, -len(rows) % ROW_MULTIPLE), mode="edge")
        self._at = torch.empty(0)
        self._num_tokens = 0

    def select(self, _: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self._num_tokens = args[0].shape[1]
        self._at = to_device(self._padded, args[0].device)
        return (args[0].index_select(1, self._at), *args[1:])

    def spread(self, _: torch.nn.Module, __: tuple[Any, ...], given: Any) -> Any:
        states, *others = given if isinstance(given, tuple) else (given,)
        whole = states.new_zeros(1, self._num_tokens, states.shape[-1])
        whole.index_copy_(1, self._at[: self._num_rows], states[:, : self._num_rows])
        return (whole, *others) if isinstance(given, tuple) else whole
