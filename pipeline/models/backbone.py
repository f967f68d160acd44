"""The decoder under a language-model or classifier head, run one packed step or one sequence at a time.

After attention, nothing in the last layer goes from one row to another. So rows that no head reads need no feed-forward
there: the rows of prompts, and all but one row of a dialogue that gets a reward.

On request torch compiles the layers. Norms, rotary embeddings, activations and residual sums then run as a few loops
instead of one pass over memory for each operation. Matrix products and attention keep their kernels. Sums change by a
rounding, and depend on batch composition no more than before. Layers share their code, so one compilation serves all
layers of a kind and any number of tokens. Torch keeps the result on disk for the next process.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from torch.func import functional_call

from pipeline.errors import ModelError
from pipeline.models.attention import PACKED_ATTENTION, Kernel, attending
from pipeline.models.memory import to_device
from pipeline.models.packing import ROW_MULTIPLE, Completion, Int64Array, Step
from pipeline.models.shared import Unadapted

_KNOWN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
# Rotary embeddings of these kinds depend on the longest sequence of a forward.
_LENGTH_DEPENDENT_ROPE: Final = frozenset({"dynamic", "longrope"})
# Tables of learned positions, by the names that transformers gives them.
_LEARNED_POSITIONS: Final = frozenset({"wpe", "embed_positions", "position_embeddings", "positions_embed"})
_HALF_PRECISION: Final = (torch.bfloat16, torch.float16)
_FEED_FORWARDS: Final = ("mlp", "feed_forward", "block_sparse_moe")


class Backbone:
    """A transformers model, or the one inside a peft model whose adapter is unmerged, or that without its adapter.

    Attributes:
        model: the model with its head; `name` is its class, for messages, and `config` its text configuration.
        device, dtype: of its weights.
        num_positions: longest sequence that its learned positions have room for; None if positions are computed.
        kernel: how packed steps are run; naive if they cannot be.
        trims: whether the last feed-forward runs only on the rows that are read.
        window: tokens that sliding layers see; None without such layers.
        plain_attention: the attention that `forward_one` runs; `other_attention` another one that is right, if any.
    """

    def __init__(self, model: Any) -> None:
        self._adapter_off: Callable[[], AbstractContextManager[Any]] = nullcontext
        if isinstance(model, Unadapted):
            self.model, self._adapter_off = model.model, model.turned_off
        else:
            self.model = model.get_base_model() if hasattr(model, "peft_config") else model
        self.config = self.model.config.get_text_config()
        self.device = next(self.model.parameters()).device
        self.dtype = next(p.dtype for p in self.model.parameters() if p.dtype.is_floating_point)
        self.num_positions = _num_positions(self.model)
        self.name = type(self.model).__name__
        self.kernel: Kernel | Literal["naive"] = "naive"
        self.trims = True
        # Flash and SDPA kernels of transformers leave a softcap out; its eager attention does not.
        softcapped = getattr(self.config, "attn_logit_softcapping", None) is not None
        self.plain_attention: str = "eager" if softcapped else self.model.config._attn_implementation  # noqa: SLF001
        self.other_attention = None if softcapped else "sdpa" if self.plain_attention == "eager" else "eager"
        self._layer_types: list[str] | None = getattr(self.config, "layer_types", None)
        slides = not self._layer_types or "sliding_attention" in self._layer_types
        self.window: int | None = getattr(self.config, "sliding_window", None) if slides else None
        self._attention_calls = (0, 0)  # of the last step: all, and those with a sliding window
        num_layers = getattr(self.config, "num_hidden_layers", None)
        lists = (m for m in self.model.base_model.modules() if isinstance(m, torch.nn.ModuleList))
        self._layers = next((modules for modules in lists if len(modules) == num_layers), None)
        last = self._layers[-1] if self._layers else None
        feed_forward = next((getattr(last, name) for name in _FEED_FORWARDS if getattr(last, name, None)), None)
        if feed_forward is not None and _select not in feed_forward._forward_pre_hooks.values():  # noqa: SLF001
            feed_forward.register_forward_pre_hook(_select)
            feed_forward.register_forward_hook(_spread)

    def hidden_rows(self, step: Step) -> torch.Tensor:
        """Last hidden states of the rows that a step reads, shape (R, d), in the model's dtype.

        A half-precision model on a CPU that ends with a norm gives them in float32 (see _last_norm_in_float32).
        """
        if self.kernel == "naive":
            raise ModelError(f"{self.name} cannot run packed steps.")
        ids, positions, rows = (to_device(values, self.device) for values in (step.ids, step.positions, step.rows))
        decoder = self.model.base_model
        in_float32 = self.device.type == "cpu" and self.dtype in _HALF_PRECISION
        with (
            self._adapter_off(),
            self._attention(PACKED_ATTENTION),
            attending(step, self.kernel, self.device) as attended,
            _last_norm_in_float32(decoder) if in_float32 else nullcontext() as last_norm,
            _only_rows(step.rows) if self.trims else nullcontext(),
        ):
            output = decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        self._attention_calls = attended.calls, attended.windowed_calls
        hidden = output.last_hidden_state[0]
        return hidden.index_select(0, rows) if last_norm is None else last_norm(hidden, rows)

    def forward_one(self, completion: Completion) -> Any:
        """The model's own output for one sequence, without padding, by its own attention."""
        ids = to_device(completion.ids, self.device)[None]
        with self._adapter_off(), self._attention(self.plain_attention), uncompiled():
            return self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    def compile(self) -> None:
        """Have the decoder's layers and norms compiled when they are next called (see above).

        Raises a ModelError if it has no list of layers.
        """
        decoder = self.model.base_model
        if self._layers is None:
            raise ModelError(f"compile: {type(decoder).__name__} has no list of layers. Set compile: false.")
        norms = [child for child in decoder.children() if "Norm" in type(child).__name__]
        for module in (*self._layers, *norms):
            module.compile(dynamic=True)

    def obstacle(self) -> str | None:
        """Why packed steps cannot be right for this configuration, or None."""
        config = self.config
        if not getattr(self.model, "_supports_attention_backend", False):
            return "its attention cannot be replaced"
        if getattr(self.model.config, "is_encoder_decoder", False):
            return "it is an encoder-decoder"
        if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", None):
            return "its attention is not causal"
        strange = sorted({*(self._layer_types or [])} - _KNOWN_LAYERS)
        if strange or getattr(config, "attention_chunk_size", None):
            return f"it has layers of kinds {strange or ['chunked_attention']}"
        rope = json.dumps([getattr(config, n, None) for n in ("rope_parameters", "rope_scaling")], default=str)
        if any(f'"{kind}"' in rope for kind in _LENGTH_DEPENDENT_ROPE):
            return "its rotary embedding depends on the longest sequence of a forward"
        return None

    def kernels(self) -> list[Kernel]:
        """Kernels that may run packed steps here, the fastest first."""
        half_on_gpu = self.device.type == "cuda" and self.dtype in _HALF_PRECISION
        return ["varlen", "sdpa"] if half_on_gpu else ["sdpa"]

    def missing_windows(self) -> str | None:
        """How many layers, in the last step, did not pass their sliding window to attention; None if all did.

        Numbers of short sequences cannot show it.
        """
        calls, windowed = self._attention_calls
        if calls == 0:
            return "its layers do not call the attention they are given"
        types = self._layer_types
        expected = 0 if self.window is None else types.count("sliding_attention") if types else calls
        return None if windowed == expected else f"{windowed} of {expected} sliding windows reach its attention"

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


def _num_positions(model: Any) -> int | None:
    for name, module in model.named_modules():
        leaf = name.rsplit(".", 1)[-1]
        if isinstance(module, torch.nn.Embedding) and leaf in _LEARNED_POSITIONS:
            padding = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings - getattr(module, "offset", padding))
    return None


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


@contextmanager
def _only_rows(rows: Int64Array) -> Iterator[None]:
    """Let the last feed-forward compute only these rows of its states, ascending, for a while. The others become 0."""
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
def _last_norm_in_float32(decoder: torch.nn.Module) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
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
