"""A decoder's last module, its final norm as a rule, computed once more in float32 on the rows that a head reads.

In half precision the model's own norm rounds what a float32 head can use: a twentieth of the error of SmolLM2's
margins. The rows are few, and so the cost is small.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.func import functional_call


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    module: torch.nn.Module
    taken: torch.Tensor
    given: torch.Tensor


@dataclass(slots=True)
class LastCalls:
    """What the simple modules right under a decoder took and gave in a forward."""

    calls: list[_Call] = field(default_factory=list)

    def in_float32(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Rows of `hidden`, shape (T, d), anew in float32 where one of the modules gave it, else as they are."""
        for call in self.calls:
            if call.given.data_ptr() == hidden.data_ptr():
                values = {name: p.float() for name, p in call.module.named_parameters()}
                found: torch.Tensor = functional_call(
                    call.module, values, (call.taken[0].index_select(0, rows).float(),)
                )
                return found
        return hidden.index_select(0, rows)

    def remember(self, module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any], given: Any) -> None:
        """A forward hook."""
        if len(args) == 1 and not options and all(torch.is_tensor(t) and t.ndim == 3 for t in (*args, given)):
            self.calls.append(_Call(module=module, taken=args[0], given=given))


@contextmanager
def last_calls(decoder: torch.nn.Module | None) -> Iterator[LastCalls]:
    """Remember them for the time of one forward; None remembers nothing."""
    calls = LastCalls()
    simple = [] if decoder is None else [module for module in decoder.children() if not any(module.children())]
    hooks = [module.register_forward_hook(calls.remember, with_kwargs=True) for module in simple]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
