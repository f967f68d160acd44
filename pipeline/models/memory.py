"""Running groups in steps that fit memory, so that one over-long row costs that row and nothing else.

A step is started before the numbers of the last one are waited for: a GPU always has work while the host packs.

A step that runs out of memory is tried again in smaller ones, and the budget stays lowered. A group that does not fit
alone is scored in halves; a sequence that does not fit alone is left out, with a reason. Smaller steps move no number
on CPU, but for the exceptions of packing; halves of a group may move one by a rounding.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch

from pipeline.drops import Reason
from pipeline.errors import ModelError
from pipeline.models.packing import Float64Array, Group, num_packed_tokens, step_end

Numbers = Callable[[], Float64Array]
"""Waits for a step that was started, and gives a number for each of its sequences."""

Run = Callable[[Sequence[Group]], Numbers]
"""Starts one forward over some groups."""


# What allocators other than CUDA's own say in a RuntimeError.
_FULL: Final = ("DefaultCPUAllocator", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory")

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Budget:
    """Most tokens in one step; lowered when memory is full, unless it is fixed."""

    tokens: int
    fixed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """One number a sequence, in the order of the groups.

    Attributes:
        values: float64; NaN where a sequence was left out.
        left_out: why, by the index of the sequence.
    """

    values: Float64Array
    left_out: Mapping[int, Reason]


def run_in_steps(groups: Sequence[Group], run: Run, budget: Budget) -> Found:
    """Call `run` on consecutive ranges of groups within the budget.

    Raises:
        ModelError: the budget is fixed, and a step within it does not fit memory.
    """
    values: list[Float64Array] = []
    left_out: dict[int, Reason] = {}
    begin = num_started = 0
    last: Numbers | None = None
    while begin < len(groups):
        end = step_end(groups, begin, budget.tokens)
        started = _attempt(run, groups[begin:end])
        if started is None and _lowered(budget, groups[begin:end]):
            continue
        if last is not None:
            values.append(last())
        if started is None:
            found, unfit = _in_halves(groups[begin], run, budget)
            left_out |= {num_started + index: Reason.DOES_NOT_FIT_MEMORY for index in unfit}
            started = partial(np.asarray, found)
        num_started += sum(map(len, groups[begin:end]))
        last, begin = started, end
    if last is not None:
        values.append(last())
    return Found(values=np.concatenate([np.zeros(0), *values]), left_out=left_out)


def _lowered(budget: Budget, groups: Sequence[Group]) -> bool:
    """Lower the budget after a step that did not fit; false where it held one group, for which that is no help."""
    num_tokens = sum(num_packed_tokens(group) for group in groups)
    if budget.fixed and num_tokens <= budget.tokens:
        raise no_smaller_steps(budget)
    if len(groups) == 1:
        return False
    budget.tokens = max(1, num_tokens // 2)
    logger.warning("Memory is full; going on with steps of %d tokens", budget.tokens)
    return True


def no_smaller_steps(budget: Budget) -> ModelError:
    """What to say where steps of a fixed budget do not fit memory."""
    return ModelError(
        f"A step of {budget.tokens} tokens does not fit memory, and deterministic does without smaller ones. "
        "Lower token_budget, and score all shards anew with it."
    )


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory is full, of the GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


def _attempt(run: Run, groups: Sequence[Group]) -> Numbers | None:
    try:
        return run(groups)
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
    # Not before here is the error gone, and with it the last hold on the tensors of the failed step.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    return None


def _in_halves(group: Group, run: Run, budget: Budget) -> tuple[Float64Array, list[int]]:
    """Numbers of a group that does not fit in one step, and the indices of its sequences that do not fit alone."""
    if len(group) == 1:
        logger.warning("A sequence of %d tokens does not fit memory and is left out", len(group[0].ids))
        return np.full(1, np.nan), [0]
    values: list[Float64Array] = []
    unfit: list[int] = []
    middle = len(group) // 2
    for begin, half in ((0, group[:middle]), (middle, group[middle:])):
        started = _attempt(run, [half])
        missing: list[int] = []
        if started is None and budget.fixed and num_packed_tokens(half) <= budget.tokens:
            raise no_smaller_steps(budget)
        if started is None:
            found, missing = _in_halves(half, run, budget)
        else:
            found = started()
        values.append(found)
        unfit += [begin + index for index in missing]
    return np.concatenate(values), unfit
