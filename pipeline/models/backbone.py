"""A transformers model, run one packed step or one sequence at a time.

`Backbone` owns the decoder under a language-model or classifier head and knows whether packed steps give this
model's own numbers. It decides that by what the configuration says and by a comparison, at start, with the
model's plain forward on a few short sequences; a model that fails either is scored one sequence at a time, which
is slow and always right. On request it repeats the comparison on real groups. Knows nothing of heads.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch

from pipeline.drops import Reason
from pipeline.errors import ModelError
from pipeline.models.agreement import OWN_NOISE, Disagreement, excess, random_groups, worth_comparing
from pipeline.models.attention import PACKED_ATTENTION, Kernel, attending
from pipeline.models.compiled import compile_layers, uncompiled
from pipeline.models.fp8 import require_fp8, use_fp8
from pipeline.models.last_norm import last_calls
from pipeline.models.layers import only_rows, prepare_last_layer
from pipeline.models.memory import Budget, Found, Numbers, Run, is_memory_error, no_smaller_steps, run_in_steps
from pipeline.models.packing import (
    ROW_MULTIPLE,
    Completion,
    Float64Array,
    Group,
    Int64Array,
    Step,
    response_step,
)
from pipeline.models.transfer import to_device

logger = logging.getLogger(__name__)

_KNOWN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
# Rotary embeddings of these kinds depend on the longest sequence of a forward.
_LENGTH_DEPENDENT_ROPE: Final = frozenset({"dynamic", "longrope"})
# Tables of learned positions, by the names that transformers gives them.
_LEARNED_POSITIONS: Final = frozenset({"wpe", "embed_positions", "position_embeddings", "positions_embed"})
_HALF_PRECISION: Final = (torch.bfloat16, torch.float16)
# Steps beyond this leave a CPU's caches and gain nothing.
_CPU_STEP_TOKENS: Final = 4096
_WRONG_OR_REFUSED: Final = (
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    ModelError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """The two ways in which an engine gets one number a sequence.

    Attributes:
        packed: from one packed step over some groups.
        plain: from the model's own forward of one sequence.
        num_read: tokens that a number is the sum over; None where it is no sum.
    """

    packed: Run
    plain: Callable[[Completion], float]
    num_read: Callable[[Completion], int] | None = None


class Backbone:
    """The decoder of a causal model or sequence classifier, with the way it is run.

    Args:
        model: a transformers model, or a peft model with its adapter unmerged.
        token_budget: most tokens in one step; a longer group runs alone.
        fp8: score with the linear layers of the decoder rounded (see fp8); comparisons come before that.
        compiled: run packed steps through compiled layers (see compiled).
        deterministic: pad every step to `token_budget` tokens, or a multiple for a longer group, and trim nothing:
            GPUs, and CPUs with tiles, choose by the shape of a product how to compute it.

    Raises:
        ModelError: this torch or GPU has no fp8.
    """

    def __init__(
        self,
        model: Any,
        token_budget: int,
        *,
        fp8: bool = False,
        compiled: bool = False,
        deterministic: bool = False,
    ) -> None:
        self.model = model.get_base_model() if hasattr(model, "peft_config") else model
        self.config = self.model.config.get_text_config()
        self.device = next(self.model.parameters()).device
        self.dtype = next(p.dtype for p in self.model.parameters() if p.dtype.is_floating_point)
        self._budget = Budget(tokens=token_budget if self.device.type != "cpu" else min(token_budget, _CPU_STEP_TOKENS))
        self.kernel: Kernel | Literal["naive"] = "naive"
        # Flash and SDPA kernels of transformers leave a softcap out; its eager attention does not.
        softcapped = getattr(self.config, "attn_logit_softcapping", None) is not None
        self._plain = "eager" if softcapped else self.model.config._attn_implementation  # noqa: SLF001
        self._other = None if softcapped else "sdpa" if self._plain == "eager" else "eager"
        self._num_positions = _num_positions(self.model)
        prepare_last_layer(self.model.base_model, self._num_layers())
        self._trims = not deterministic
        self._compiled = compiled
        self.deterministic = deterministic
        self.row_multiple = -(-self._budget.tokens // ROW_MULTIPLE) * ROW_MULTIPLE if deterministic else ROW_MULTIPLE
        self._budget.fixed = deterministic
        self._to_be_rounded = fp8
        if fp8:
            require_fp8(self.device)

    def choose_kernel(self, ways: Ways) -> None:
        """Set the fastest kernel whose results, per token read, equal those of the plain forward.

        Raises:
            ModelError: layers are to be compiled, and cannot be, or give other results; or steps of the one shape do
                not fit memory.
        """
        name = type(self.model).__name__
        obstacle = self._obstacle()
        reasons = [] if obstacle is None else [obstacle]
        groups = [] if reasons else random_groups(self.config.vocab_size)
        # A kernel, compiler or remote model may fail in many ways here; each of them only means "not so".
        for trims, kernel in [] if reasons else self._attempts():
            self._trims, self.kernel = trims, kernel
            with uncompiled():
                reason = self._failure(ways, groups)
            if reason is None:
                if reasons:
                    logger.warning("%s runs packed, but not in the fastest way: %s", name, "; ".join(reasons))
                self._compile(ways, groups)
                return
            reasons.append(reason)
        self.kernel = "naive"
        without = " (and without compile)" if self._compiled else ""
        logger.warning(
            "%s is scored one sequence at a time%s, which is several times slower than packed steps: %s",
            name,
            without,
            reasons[0],
        )

    def _compile(self, ways: Ways, groups: list[Group]) -> None:
        if not self._compiled:
            return
        compile_layers(self.model.base_model, self._num_layers())
        reason = self._failure(ways, groups)
        if reason is not None:
            raise ModelError(
                f"compile: the layers of {type(self.model).__name__} cannot be compiled here: {reason.splitlines()[0]} "
                "Set compile: false; on CPUs torch needs a C++ compiler."
            )

    def score(self, groups: Sequence[Group], ways: Ways) -> Found:
        """One number a sequence; what the model or memory has no room for is left out."""
        self._round()
        return self._score(groups, ways)

    def _score(self, groups: Sequence[Group], ways: Ways) -> Found:
        sequences = [c for group in groups for c in group]
        long = {i for i, c in enumerate(sequences) if self._num_positions and len(c.ids) > self._num_positions}
        if not long:
            return self._run(groups, ways)
        index = iter(range(len(sequences)))
        short = [[c for c in group if next(index) not in long] for group in groups]
        found = self._run([group for group in short if group], ways)
        kept = [i for i in range(len(sequences)) if i not in long]
        values = np.full(len(sequences), np.nan)
        values[kept] = found.values
        left_out = {kept[i]: reason for i, reason in found.left_out.items()} | dict.fromkeys(
            long, Reason.LONGER_THAN_MODEL
        )
        return Found(values=values, left_out=left_out)

    def disagreement(self, groups: Sequence[Group], ways: Ways) -> Disagreement | None:
        """Compare packed steps with the plain forward on a few of the groups, the shortest that say enough.

        Returns:
            None if they agree, or where there are no packed steps to compare.
        """
        if self.kernel == "naive":
            return None
        chosen = worth_comparing(groups, self._window())
        compared = [groups[i] for i in chosen]
        packed, plain = self._score(compared, ways), self._one_by_one(compared, ways)
        found = self._excess(compared, packed, plain, ways)
        worst = float(found.max(initial=0.0))
        if worst <= 1.0:
            return None
        if self.dtype != torch.float32 and self._other is not None:
            with self._plain_by(self._other):
                noise = self._excess(compared, self._one_by_one(compared, ways), plain, ways)
            if worst <= OWN_NOISE * float(noise.max()):
                return None
        unit = "reward" if ways.num_read is None else "mean log-prob per token"
        index = int(np.argmax(found))
        difference = abs(packed.values[index] - plain.values[index]) / _num_read(ways, compared)[index]
        message = (
            f"{type(self.model).__name__}: packed steps ({self.kernel} kernel, {self.dtype}) and the model's own "
            f"forward differ by {difference:.3g} in {unit} on real rows, {worst:.3g} times what is allowed"
        )
        return Disagreement(groups=tuple(chosen), message=message)

    def _round(self) -> None:
        if self._to_be_rounded:
            self._to_be_rounded = False
            use_fp8(self.model)

    def hidden_rows(self, step: Step) -> torch.Tensor:
        """Last hidden states of the rows that a step reads, shape (R, d), in the model's dtype.

        Those of a half-precision model on CPU are in float32, if a norm ends it (see last_norm).
        """
        hidden, _ = self._attend(step)
        return hidden

    def forward_one(self, completion: Completion) -> Any:
        """The model's own output for one sequence, without padding, by its own attention."""
        ids = to_device(completion.ids, self.device)[None]
        with self._attention(self._plain), uncompiled():
            return self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    def _attend(self, step: Step) -> tuple[torch.Tensor, tuple[int, int]]:
        if self.kernel == "naive":
            raise ModelError(f"{type(self.model).__name__} cannot run packed steps.")
        ids, positions, rows = (to_device(values, self.device) for values in (step.ids, step.positions, step.rows))
        decoder = self.model.base_model
        in_float32 = self.device.type == "cpu" and self.dtype in _HALF_PRECISION
        with (
            self._attention(PACKED_ATTENTION),
            attending(step, self.kernel, self.device) as state,
            last_calls(decoder if in_float32 else None) as calls,
            only_rows(step.rows) if self._trims else nullcontext(),
        ):
            output = decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        hidden = output.last_hidden_state[0]
        read = calls.in_float32(hidden, rows) if in_float32 else hidden.index_select(0, rows)
        return read, (state.calls, state.windowed_calls)

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

    def _attempts(self) -> Iterator[tuple[bool, Kernel]]:
        """Ways to run packed steps, the fastest first: whether the last layer is trimmed, and the kernel."""
        for trims in (False,) if self.deterministic else (True, False):
            if self.device.type == "cuda" and self.dtype in _HALF_PRECISION:
                yield trims, "varlen"
            yield trims, "sdpa"

    def _num_layers(self) -> int | None:
        return getattr(self.config, "num_hidden_layers", None)

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

    def _failure(self, ways: Ways, groups: list[Group]) -> str | None:
        """Why the kernel set cannot be used, or None."""
        plain = self._one_by_one(groups, ways)
        try:
            packed = Found(values=ways.packed(groups)(), left_out={})
            missing = self._missing_windows(groups)
        except _WRONG_OR_REFUSED as error:
            if self._budget.fixed and is_memory_error(error):
                raise no_smaller_steps(self._budget) from error
            return f"{type(error).__name__}: {error} ({self.kernel} kernel)"
        if not np.all(self._excess(groups, packed, plain, ways) <= 1.0):
            difference = np.max(np.abs(packed.values - plain.values) / _num_read(ways, groups))
            return f"packed and plain forwards differ by {difference:.3g} with the {self.kernel} kernel"
        return missing

    def _excess(self, groups: Sequence[Group], first: Found, second: Found, ways: Ways) -> Float64Array:
        """Differences as multiples of what is allowed; infinite where only one is a number."""
        num_read = _num_read(ways, groups)
        found = excess(
            first.values / num_read, second.values / num_read, None if ways.num_read is None else num_read, self.dtype
        )
        found[np.isnan(found)] = np.inf
        both_none = ~np.isfinite(first.values) & ~np.isfinite(second.values)
        found[[*first.left_out, *second.left_out, *np.flatnonzero(both_none)]] = 0.0
        return found

    def _run(self, groups: Sequence[Group], ways: Ways) -> Found:
        if self.kernel == "naive":
            return self._one_by_one(groups, ways)
        return run_in_steps(groups, ways.packed, self._budget)

    def _one_by_one(self, groups: Sequence[Group], ways: Ways) -> Found:
        def run(some: Sequence[Group]) -> Numbers:
            found = np.asarray([ways.plain(completion) for group in some for completion in group], dtype=np.float64)
            return lambda: found

        return run_in_steps([[completion] for group in groups for completion in group], run, Budget(tokens=1))

    @contextmanager
    def _plain_by(self, attention: str) -> Iterator[None]:
        before, self._plain = self._plain, attention
        try:
            yield
        finally:
            self._plain = before

    def _window(self) -> int | None:
        window: int | None = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        return None if kinds and "sliding_attention" not in kinds else window

    def _missing_windows(self, groups: Sequence[Group]) -> str | None:
        """Whether a layer has a sliding window that its attention is not told of (short probes cannot show it)."""
        _, (calls, windowed) = self._attend(response_step(groups))
        if calls == 0:
            return "its layers do not call the attention they are given"
        kinds = getattr(self.config, "layer_types", None)
        has_window = getattr(self.config, "sliding_window", None) is not None
        expected = (kinds.count("sliding_attention") if kinds else calls) if has_window else 0
        return None if windowed == expected else f"{windowed} of {expected} sliding windows reach its attention"


def _num_read(ways: Ways, groups: Sequence[Group]) -> Int64Array:
    counts = [1 if ways.num_read is None else ways.num_read(c) for group in groups for c in group]
    return np.maximum(1, np.asarray(counts, dtype=np.int64))


def _num_positions(model: Any) -> int | None:
    """Longest sequence that learned positions have room for, or None where positions are computed."""
    for name, module in model.named_modules():
        leaf = name.rsplit(".", 1)[-1]
        if isinstance(module, torch.nn.Embedding) and leaf in _LEARNED_POSITIONS:
            padding = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings - getattr(module, "offset", padding))
    return None
