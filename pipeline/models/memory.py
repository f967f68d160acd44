"""Steps that fit memory: one over-long row costs that row and nothing else.

The next step starts before the numbers of the last one are read. On a GPU nothing else waits: copies go through pinned
memory in the order of the device's work, so the host packs the next step while the device works on the last one.

A step that runs out of memory is tried again in smaller ones, and the budget stays lowered. A group that does not fit
alone is scored in halves. A sequence that does not fit alone is left out, with a reason. Smaller steps change no
number on CPU (packing lists the exceptions). Halves of a group may change one by a rounding.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from pipeline.drops import Reason
from pipeline.errors import ModelError
from pipeline.models.packing import Float64Array, Group, Sharing, num_step_tokens, step_end
from pipeline.models.scores import Scores

Numbers = Callable[[], Float64Array]
"""Waits for a step that was started and gives its numbers."""

# What allocators other than CUDA's own say in a RuntimeError.
_FULL: Final = ("DefaultCPUAllocator", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory")

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Budget:
    """Most tokens in one step; lowered when memory is full, unless it is fixed. sharing: what its groups share."""

    tokens: int
    fixed: bool = False
    sharing: Sharing = 0


def run_in_steps(
    groups: Sequence[Group],
    start: Callable[[Sequence[Group]], Numbers],
    budget: Budget,
    shape: tuple[int, ...] = (),
) -> Scores:
    """Score consecutive ranges of groups within the budget, each by one call of `start`.

    shape: of the numbers of one sequence.

    Raises a ModelError if the budget is fixed, and a step within it does not fit memory.
    """
    queue = list(groups)
    values: list[Float64Array] = []
    left_out: dict[int, Reason] = {}
    begin = num_sequences = 0
    num_halves = 0  # groups from `begin` on that are halves of a group that did not fit; each of them runs alone
    last: Numbers | None = None
    while begin < len(queue):
        end = begin + 1 if num_halves else step_end(queue, begin, budget.tokens, budget.sharing)
        step = queue[begin:end]
        numbers: Numbers | None = None
        try:
            numbers = start(step)
        except (MemoryError, RuntimeError) as error:
            if not is_memory_error(error):
                raise
        # Leave the except block first: its traceback keeps the tensors of the failed step alive.
        if numbers is None:
            smaller = _smaller(step, budget)
            if smaller:
                queue[begin:end] = smaller
                if len(step) == 1:
                    num_halves += 1 if num_halves else 2
                continue
            left_out[num_sequences] = Reason.DOES_NOT_FIT_MEMORY
            numbers = partial(np.full, (1, *shape), np.nan)
        if last is not None:
            values.append(last())
        last, begin = numbers, end
        num_sequences += sum(map(len, step))
        num_halves = max(0, num_halves - 1)
    if last is not None:
        values.append(last())
    return Scores(values=np.concatenate([np.zeros((0, *shape)), *values]), left_out=left_out)


def _smaller(step: list[Group], budget: Budget) -> list[Group]:
    """Groups to run in place of a step that does not fit: the same with a lower budget, or the halves of its only one.

    Empty if it is one sequence.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    num_tokens = num_step_tokens(step, budget.sharing)
    if budget.fixed and num_tokens <= budget.tokens:
        raise no_smaller_steps(budget)
    if len(step) > 1:
        budget.tokens = max(1, num_tokens // 2)
        logger.warning("Memory is full; going on with steps of %d tokens", budget.tokens)
        return step
    middle = len(step[0]) // 2
    if middle:
        return [step[0][:middle], step[0][middle:]]
    logger.warning("A sequence of %d tokens does not fit memory and is left out", len(step[0][0].ids))
    return []


def no_smaller_steps(budget: Budget) -> ModelError:
    """The error for steps of a fixed budget that do not fit memory."""
    return ModelError(
        f"A step of {budget.tokens} tokens does not fit memory, and deterministic allows no smaller ones. "
        "Lower token_budget and score all shards again."
    )


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory is full, of the GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


def to_device(values: npt.NDArray[Any] | list[int], device: torch.device) -> torch.Tensor:
    """Integers on a device, int64."""
    tensor = torch.from_numpy(np.require(values, np.int64, "W"))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def from_device(values: torch.Tensor) -> Numbers:
    """Start to copy the values of a tensor to the host as float64. Its device may still be computing them."""
    if values.device.type != "cuda":
        found: Float64Array = values.double().numpy()
        return lambda: found
    host = torch.empty(values.shape, dtype=torch.float64, pin_memory=True)
    host.copy_(values, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def wait() -> Float64Array:
        done.synchronize()
        numbers: Float64Array = host.numpy()
        return numbers

    return wait
