"""The allowed difference between packed steps and a model's own forward, and the groups that are compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ModelError
from pipeline.models.packing import Completion, Float64Array, Group, Int64Array, num_packed_tokens
from pipeline.shown import listed, quoted

if TYPE_CHECKING:
    from pipeline.models.engine import Engine
    from pipeline.models.vllm_scoring import VllmScoringEngine

# Largest allowed difference of rewards, or of mean log-probabilities per token. It grows for numbers above the full
# scale: half precision is coarser there. In half precision it falls with the root of the number of tokens: over
# hundreds of tokens a packing bug shifts the mean by a few 0.01, rounding by a few 0.001. The tolerance lies between.
_TOLERANCE: Final = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_HALF: Final = 0.15
_FULL_SCALE: Final = 16.0
_ENOUGH_TOKENS: Final = 16
_MANY_TOKENS: Final = 1024
# In a sensitive model half precision differs by more. Then the difference between two of the model's own attentions is
# measured, and this many times as much is allowed.
OWN_NOISE: Final = 4.0

_NUM_COMPARED: Final = 4
_MOST_TOKENS: Final = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """Packed steps and the plain forward give different numbers."""

    groups: tuple[int, ...]
    """Indices of the groups that were compared."""
    message: str
    """Which model and kernel, what the difference is and what was wanted."""


def check_engine(engine: "Engine | VllmScoringEngine", groups: Sequence[Group], ids: Sequence[str], stage: str) -> None:
    """Compare an engine with its model's own forward on some of the groups. `ids` are the ids of their rows.

    Raises a ModelError if they differ.
    """
    found = engine.disagreement(groups)
    if found is not None:
        raise ModelError(
            f"The {stage} model cannot be trusted as it is run. {found.message}. Compared rows: "
            f"[{listed([ids[i] for i in found.groups], show=quoted)}]. Nothing was scored with it. Try dtype: float32; "
            "if that fails too, another version of torch or transformers; and report the model's class."
        )


def excess(got: Float64Array, expected: Float64Array, num_read: Int64Array | None, dtype: torch.dtype) -> Float64Array:
    """Differences as multiples of what is allowed. More than 1, or NaN, is a disagreement.

    num_read: how many tokens each number is a mean of; None for rewards.
    """
    allowed = _TOLERANCE.get(dtype, _TOLERANCE_HALF) * np.maximum(1.0, np.abs(expected) / _FULL_SCALE)
    if num_read is not None and dtype not in _TOLERANCE:
        allowed = allowed * np.sqrt(_ENOUGH_TOKENS / np.clip(num_read, 1, _MANY_TOKENS))
    found: Float64Array = np.abs(got - expected) / allowed
    return found


def random_groups(vocab_size: int) -> list[Group]:
    """A few short sequences of random tokens: two that share a prefix, then two that share another."""
    random = np.random.default_rng(0)

    def tokens(count: int) -> npt.NDArray[np.int32]:
        return random.integers(0, vocab_size, count, dtype=np.int32)

    first, second = tokens(9), tokens(5)
    lengths = [(first, 16), (first, 11), (second, 13), (second, 14)]
    made = [Completion(ids=np.concatenate([prefix, tokens(n)]), start=len(prefix)) for prefix, n in lengths]
    return [made[:2], made[2:]]


def worth_comparing(groups: Sequence[Group], window: int | None) -> list[int]:
    """Indices of at most four groups: the shortest with enough tokens, one of them longer than the sliding window."""
    shared = [sum(len(c.ids) for c in group) > num_packed_tokens(group) for group in groups]
    telling = [min(len(c.ids) - c.start for c in group) >= _ENOUGH_TOKENS for group in groups]
    size = [sum(len(c.ids) for c in group) for group in groups]
    fit = [i for i in range(len(groups)) if size[i] <= _MOST_TOKENS and min(len(c.ids) - c.start for c in groups[i])]
    shortest = sorted(fit, key=lambda i: (not (shared[i] and telling[i]), size[i], i))
    beyond = [i for i in shortest if window is not None and max(len(c.ids) for c in groups[i]) > window]
    chosen = sorted(beyond, key=lambda i: (size[i], i))[:1]
    return sorted(chosen + [i for i in shortest if i not in chosen][: _NUM_COMPARED - len(chosen)])
