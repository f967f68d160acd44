"""A transformers model, run one packed step or one sequence at a time.

`Backbone` owns the decoder under a language-model or classifier head and knows whether packed steps give this
model's own numbers. It decides that by what the configuration says and by a comparison, at start, with the
model's plain forward on a few short sequences; a model that fails either is scored one sequence at a time, which
is slow and always right. Knows nothing of heads.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ModelError
from pipeline.models.attention import PACKED_ATTENTION, Kernel, attending
from pipeline.models.packing import Completion, Group, Step, response_step, step_end

Float64Array = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)

_KNOWN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
# Rotary embeddings of these kinds depend on the longest sequence of a forward.
_LENGTH_DEPENDENT_ROPE: Final = frozenset({"dynamic", "longrope"})
# Steps beyond this leave a CPU's caches and gain nothing.
_CPU_STEP_TOKENS: Final = 4096
# Largest difference, in mean log-prob or reward, between the packed and the plain forward of a few random tokens;
# more for numbers above the full scale, where half precision is coarser.
_TOLERANCE: Final = {torch.float32: 1e-3}
_TOLERANCE_HALF: Final = 0.15
_FULL_SCALE: Final = 16.0
_WRONG_OR_REFUSED: Final = (AttributeError, IndexError, KeyError, ModelError, RuntimeError, TypeError, ValueError)


class Backbone:
    """The decoder of a causal model or sequence classifier, with the way it is run.

    Args:
        model: a transformers model, or a peft model with its adapter unmerged.
        token_budget: most tokens in one step; a longer group runs alone.
    """

    def __init__(self, model: Any, token_budget: int) -> None:
        self.model = model.get_base_model() if hasattr(model, "peft_config") else model
        self.config = self.model.config.get_text_config()
        self.device = next(self.model.parameters()).device
        self.dtype = next(p.dtype for p in self.model.parameters() if p.dtype.is_floating_point)
        self.token_budget = token_budget if self.device.type != "cpu" else min(token_budget, _CPU_STEP_TOKENS)
        self.kernel: Kernel | Literal["naive"] = "naive"
        # Flash and SDPA kernels of transformers leave a softcap out; its eager attention does not.
        softcapped = getattr(self.config, "attn_logit_softcapping", None) is not None
        self._plain = "eager" if softcapped else self.model.config._attn_implementation  # noqa: SLF001

    def choose_kernel(
        self, packed: Callable[[Sequence[Group]], Float64Array], plain: Callable[[Sequence[Group]], Float64Array]
    ) -> None:
        """Set the fastest kernel whose results, per token read, equal those of the plain forward.

        Args:
            packed: scores per sequence by packed steps, comparable with those of `plain`.
            plain: scores per sequence by the model's own forward.
        """
        reason = self._obstacle()
        if reason is None:
            groups = self._probe()
            expected = plain(groups)
            # A kernel, compiler or remote model may fail in many ways here; each of them only means "not packed".
            for kernel in self._kernels():
                self.kernel = kernel
                reason = self._disagreement(packed, groups, expected)
                if reason is None:
                    return
        self.kernel = "naive"
        logger.warning(
            "%s is scored one sequence at a time, which is several times slower than packed steps: %s",
            type(self.model).__name__,
            reason,
        )

    def steps(self, groups: Sequence[Group], run: Callable[[Sequence[Group]], None]) -> None:
        """Call `run` on consecutive ranges of groups within the budget, which is halved when a GPU is full.

        Raises:
            ModelError: a single group does not fit the GPU.
        """
        begin = 0
        while begin < len(groups):
            end = step_end(groups, begin, self.token_budget)
            try:
                run(groups[begin:end])
            except torch.cuda.OutOfMemoryError:
                if end - begin == 1:
                    raise ModelError(
                        f"A group of {sum(len(c.ids) for c in groups[begin])} tokens does not fit the GPU. "
                        "Lower tokens.max_length, or give the model a larger GPU."
                    ) from None
                torch.cuda.empty_cache()
                self.token_budget = max(1, self.token_budget // 2)
                logger.warning("GPU memory is full; going on with steps of %d tokens", self.token_budget)
                continue
            begin = end

    def hidden_rows(self, step: Step) -> torch.Tensor:
        """Last hidden states of the rows that a step reads, shape (R, d), in the model's dtype."""
        hidden, _ = self._attend(step)
        return hidden

    def forward_one(self, completion: Completion) -> Any:
        """The model's own output for one sequence, without padding, by its own attention."""
        ids = torch.as_tensor(completion.ids, dtype=torch.int64, device=self.device)[None]
        with self._attention(self._plain):
            return self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    def _attend(self, step: Step) -> tuple[torch.Tensor, tuple[int, int]]:
        if self.kernel == "naive":
            raise ModelError(f"{type(self.model).__name__} cannot run packed steps.")
        ids, positions, rows = (
            torch.as_tensor(values, dtype=torch.int64, device=self.device)
            for values in (step.ids, step.positions, step.rows)
        )
        with self._attention(PACKED_ATTENTION), attending(step, self.kernel, self.device) as state:
            output = self.model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        return output.last_hidden_state[0].index_select(0, rows), (state.calls, state.windowed_calls)

    @contextmanager
    def _attention(self, name: str) -> Iterator[None]:
        """Run the model with another attention for a while; it is left as it was found."""
        before = self.model.config._attn_implementation  # noqa: SLF001
        if before == name:
            yield
            return
        self.model.set_attn_implementation(name)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    def _kernels(self) -> Iterator[Kernel]:
        if self.device.type == "cuda" and self.dtype in (torch.bfloat16, torch.float16):
            yield "varlen"
        yield "sdpa"

    def _obstacle(self) -> str | None:
        """Why packed steps cannot be right for this configuration, or None."""
        config = self.config
        if not getattr(self.model, "_supports_attention_backend", False):
            return "its attention cannot be replaced"
        if getattr(self.model.config, "is_encoder_decoder", False):
            return "it is an encoder-decoder"
        if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", None):
            return "its attention is not causal"
        strange = sorted({*(getattr(config, "layer_types", None) or [])} - _KNOWN_LAYERS)
        if strange or getattr(config, "attention_chunk_size", None):
            return f"it has layers of kinds {strange or ['chunked_attention']}"
        rope = json.dumps([getattr(config, n, None) for n in ("rope_parameters", "rope_scaling")], default=str)
        if any(f'"{kind}"' in rope for kind in _LENGTH_DEPENDENT_ROPE):
            return "its rotary embedding depends on the longest sequence of a forward"
        return None

    def _probe(self) -> list[Group]:
        """A few short sequences of random tokens: two that share a prefix, then two that share another."""
        random = np.random.default_rng(0)

        def tokens(count: int) -> npt.NDArray[np.int32]:
            return random.integers(0, self.config.vocab_size, count, dtype=np.int32)

        first, second = tokens(9), tokens(5)
        lengths = [(first, 16), (first, 11), (second, 13), (second, 14)]
        probes = [Completion(ids=np.concatenate([prefix, tokens(n)]), start=len(prefix)) for prefix, n in lengths]
        return [probes[:2], probes[2:]]

    def _disagreement(
        self, packed: Callable[[Sequence[Group]], Float64Array], groups: list[Group], expected: Float64Array
    ) -> str | None:
        try:
            got = packed(groups)
            missing = self._missing_windows(groups)
        except _WRONG_OR_REFUSED as error:
            return f"{type(error).__name__}: {error}"
        scale = np.maximum(1.0, np.abs(expected) / _FULL_SCALE)
        difference = float(np.max(np.abs(got - expected) / scale))
        if not difference <= _TOLERANCE.get(self.dtype, _TOLERANCE_HALF):  # NaN counts as a difference
            return f"packed and plain forwards differ by {difference:.3g} with the {self.kernel} kernel"
        return missing

    def _missing_windows(self, groups: Sequence[Group]) -> str | None:
        """Whether a layer has a sliding window that its attention is not told of (short probes cannot show it)."""
        _, (calls, windowed) = self._attend(response_step(groups))
        if calls == 0:
            return "its layers do not call the attention they are given"
        kinds = getattr(self.config, "layer_types", None)
        has_window = getattr(self.config, "sliding_window", None) is not None
        expected = (kinds.count("sliding_attention") if kinds else calls) if has_window else 0
        return None if windowed == expected else f"{windowed} of {expected} sliding windows reach its attention"
