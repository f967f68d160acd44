"""The common part of scoring engines: packed steps, checked against the model's own forward.

An engine has two ways to a number. Packed steps are fast. The model's own forward of one sequence is always right, and
several times slower. At the start both are compared on a few short random sequences. If they differ, the model is
scored one sequence at a time. `disagreement` repeats the comparison on real groups.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import product
from typing import Any, ClassVar, Final, Self

import numpy as np
import torch

from pipeline.config import TorchModel
from pipeline.drops import Reason
from pipeline.errors import ModelError
from pipeline.models.agreement import OWN_NOISE, Disagreement, excess, random_groups, worth_comparing
from pipeline.models.backbone import Backbone, uncompiled
from pipeline.models.fp8 import require_fp8, use_fp8
from pipeline.models.memory import Budget, Numbers, is_memory_error, no_smaller_steps, run_in_steps
from pipeline.models.packing import BLOCK_ROWS, ROW_MULTIPLE, Completion, Float64Array, Group, Int64Array, sharing_order
from pipeline.models.scores import Scores

_TOKENS_GPU: Final = 32768
# Longer steps leave a CPU's caches and gain nothing.
_TOKENS_CPU: Final = 4096

logger = logging.getLogger(__name__)


class Engine(ABC):
    """Gives one number a sequence under one model.

    Args:
        model: a transformers model in evaluation mode, or a peft model around one. It is run in the dtype of its
            weights; `loading` gives one in a dtype that this CPU computes in.
        token_budget: most tokens in one forward; a longer group runs alone. None: 32768 on GPUs, 4096 on CPUs.
        fp8: score with the decoder's linear layers in 8 bits (see fp8). Comparisons are made before that.
        compiled: run the decoder's layers compiled (see backbone).
        deterministic: pad every forward to `token_budget` tokens, or a multiple for a longer group, and trim nothing.
            GPUs, and CPUs with tiles, compute a product in a way that depends on its shape.
        shape: of the numbers of one sequence; () is one number.

    Raises:
        ModelError: this torch or GPU has no fp8; the layers cannot be compiled, or give other numbers then; or a
            padded step does not fit memory.
    """

    _quantity: ClassVar[str]
    """What is compared, for messages."""

    def __init__(
        self,
        model: Any,
        token_budget: int | None = None,
        *,
        fp8: bool = False,
        compiled: bool = False,
        deterministic: bool = False,
        shape: tuple[int, ...] = (),
    ) -> None:
        self._shape = shape
        self._backbone = Backbone(model)
        if token_budget is None:
            token_budget = _TOKENS_CPU if self._backbone.device.type == "cpu" else _TOKENS_GPU
        # With `deterministic` no call of attention may depend on the rows beside it, on GPUs either.
        sharing = 0 if deterministic else BLOCK_ROWS if self._backbone.device.type == "cpu" else 1
        self._budget = Budget(tokens=token_budget, fixed=deterministic, sharing=sharing)
        self._row_multiple = -(-token_budget // ROW_MULTIPLE) * ROW_MULTIPLE if deterministic else ROW_MULTIPLE
        self._deterministic = deterministic
        self._compiled = compiled
        self._to_be_rounded = fp8
        if fp8:
            require_fp8(self._backbone.device)
        if self._attach_head():
            with torch.inference_mode():
                self._choose_kernel()

    @classmethod
    def load(cls, section: TorchModel) -> Self:
        """The engine of a config section. Raises a ModelError if the model cannot be loaded, or not be run as asked."""
        return cls(
            cls._load_model(section),
            section.token_budget,
            fp8=section.fp8,
            compiled=section.compile,
            deterministic=section.deterministic,
            shape=cls._shape_of(section),
        )

    @property
    def kernel(self) -> str:
        """How it runs: sdpa or varlen (packed steps), or naive (one sequence at a time)."""
        return self._backbone.kernel

    @torch.inference_mode()
    def score(self, groups: Sequence[Group], *, in_fp8: bool = True) -> Scores:
        """The numbers of every sequence. Those that are not finite are returned as they are.

        in_fp8: whether to round the model first, where fp8 is asked for.
        """
        if in_fp8 and self._to_be_rounded:
            self._to_be_rounded = False
            use_fp8(self._backbone.model)
        limit = self._backbone.num_positions or math.inf
        fits = np.asarray([len(c.ids) <= limit for group in groups for c in group], dtype=bool)
        short = [fitting for group in groups if (fitting := [c for c in group if len(c.ids) <= limit])]
        if self._backbone.kernel == "naive":
            found = self._one_by_one(short)
        else:
            order = sharing_order(short)
            found = run_in_steps([short[i] for i in order], self._packed, self._budget, self._shape)
            found = found.put_back([len(short[i]) for i in order], order)
        values = np.full((len(fits), *self._shape), np.nan)
        values[fits] = found.values
        places = np.flatnonzero(fits).tolist()
        left_out = {places[index]: reason for index, reason in found.left_out.items()}
        left_out |= dict.fromkeys(np.flatnonzero(~fits).tolist(), Reason.LONGER_THAN_MODEL)
        return Scores(values=values, left_out=left_out)

    @torch.inference_mode()
    def disagreement(self, groups: Sequence[Group]) -> Disagreement | None:
        """Compare packed steps with the model's own forward on a few of the groups, the shortest that say enough.

        Returns:
            None if they agree, or if there are no packed steps to compare.
        """
        backbone = self._backbone
        if backbone.kernel == "naive":
            return None
        chosen = worth_comparing(groups, backbone.window)
        compared = [groups[i] for i in chosen]
        packed, plain = self.score(compared, in_fp8=False), self._one_by_one(compared)
        differences, multiples = self._compare(compared, packed, plain)
        worst = float(multiples.max(initial=0.0))
        if worst <= 1.0:
            return None
        if backbone.dtype != torch.float32 and backbone.other_attention is not None:
            own, backbone.plain_attention = backbone.plain_attention, backbone.other_attention
            try:
                _, noise = self._compare(compared, self._one_by_one(compared), plain)
            finally:
                backbone.plain_attention = own
            if worst <= OWN_NOISE * float(noise.max()):
                return None
        message = (
            f"{backbone.name}: packed steps ({backbone.kernel} kernel, {backbone.dtype}) and the model's own "
            f"forward differ by {differences[np.argmax(multiples)]:.3g} in {self._quantity} on real rows, "
            f"{worst:.3g} times what is allowed"
        )
        return Disagreement(groups=tuple(chosen), message=message)

    @staticmethod
    @abstractmethod
    def _load_model(model: TorchModel) -> Any:
        """The model of a config section."""

    @abstractmethod
    def _attach_head(self) -> bool:
        """Prepare what follows the decoder; false if the model has no head that packed steps can feed."""

    @abstractmethod
    def _packed(self, groups: Sequence[Group]) -> Numbers:
        """Start one packed step over some groups."""

    @abstractmethod
    def _plain(self, completion: Completion) -> float | Float64Array:
        """The numbers by the model's own forward of one sequence."""

    @staticmethod
    def _shape_of(section: Any) -> tuple[int, ...]:
        """The shape of the numbers of one sequence that a config section asks for."""
        del section
        return ()

    def _num_read(self, groups: Sequence[Group]) -> Int64Array | None:
        """How many tokens each number is a sum of, at least 1; None if it is no sum."""
        del groups
        return None

    def _one_by_one(self, groups: Sequence[Group]) -> Scores:
        def start(some: Sequence[Group]) -> Numbers:
            found = np.asarray([self._plain(completion) for group in some for completion in group], dtype=np.float64)
            return lambda: found

        alone = [[completion] for group in groups for completion in group]
        return run_in_steps(alone, start, Budget(tokens=1), self._shape)

    def _choose_kernel(self) -> None:
        """Set the fastest kernel whose numbers equal those of the plain forward."""
        backbone = self._backbone
        obstacle = backbone.obstacle()
        reasons = [] if obstacle is None else [obstacle]
        groups = random_groups(backbone.config.vocab_size) if obstacle is None else []
        trims = (False,) if self._deterministic else (True, False)
        for trim, kernel in product(trims, backbone.kernels()) if obstacle is None else ():
            backbone.trims, backbone.kernel = trim, kernel
            with uncompiled():
                reason = self._failure(groups)
            if reason is None:
                if reasons:
                    logger.warning("%s runs packed, but not in the fastest way: %s", backbone.name, "; ".join(reasons))
                if self._compiled:
                    self._compile(groups)
                return
            reasons.append(reason)
        backbone.kernel = "naive"
        logger.warning(
            "%s is scored one sequence at a time%s, which is several times slower than packed steps: %s",
            backbone.name,
            " (and without compile)" if self._compiled else "",
            reasons[0],
        )

    def _compile(self, groups: Sequence[Group]) -> None:
        self._backbone.compile()
        reason = self._failure(groups)
        if reason is not None:
            raise ModelError(
                f"compile: the layers of {self._backbone.name} cannot be compiled here: {reason.splitlines()[0]} "
                "Set compile: false; on CPUs torch needs a C++ compiler."
            )

    def _failure(self, groups: Sequence[Group]) -> str | None:
        """Why the kernel set cannot be used, or None."""
        kernel = self._backbone.kernel
        plain = self._one_by_one(groups)
        try:
            packed = Scores(values=self._packed(groups)(), left_out={})
            missing = self._backbone.missing_windows()
        except Exception as error:
            if self._deterministic and is_memory_error(error):
                raise no_smaller_steps(self._budget) from error
            return f"{type(error).__name__}: {error} ({kernel} kernel)"
        differences, multiples = self._compare(groups, packed, plain)
        if not np.all(multiples <= 1.0):
            return f"packed and plain forwards differ by {differences.max():.3g} with the {kernel} kernel"
        return missing

    def _compare(self, groups: Sequence[Group], first: Scores, second: Scores) -> tuple[Float64Array, Float64Array]:
        """Differences of rewards or of means over the tokens read, also as multiples of what is allowed.

        A multiple is infinite if only one of the two is a number. Of several heads, the worst counts.
        """
        num_read = self._num_read(groups)
        got, expected = (scores.values / (1 if num_read is None else num_read) for scores in (first, second))
        multiples = excess(got, expected, num_read, self._backbone.dtype)
        multiples[np.isnan(multiples)] = np.inf
        multiples[~np.isfinite(got) & ~np.isfinite(expected)] = 0.0
        multiples[[*first.left_out, *second.left_out]] = 0.0
        differences = np.abs(got - expected)
        return (differences, multiples) if not self._shape else (differences.max(axis=1), multiples.max(axis=1))
