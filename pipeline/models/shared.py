"""One set of weights for a policy with a LoRA adapter and a reference that is its base, where one process holds both.

The policy is loaded with its adapter unmerged on top. The reference then runs the same modules with the adapter turned
off: the same sums in the same order as a base that was loaded alone, so its scores are equal to the bit. Only adapters
of LoRA factors on linear layers are shared; one that brings whole modules changes the base.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

from pipeline.config import TorchModel
from pipeline.models.adapters import Adapter
from pipeline.models.loading import load_causal_lm

_FACTORS: Final = ("lora_A.weight", "lora_B.weight")
_held: Final[WeakValueDictionary[tuple[Any, ...], Any]] = WeakValueDictionary()
"""Models with an adapter on top, as long as an engine uses them."""


@dataclass(frozen=True, slots=True, eq=False)
class Unadapted:
    """A transformers model that peft has put an adapter into, as it is without it."""

    model: Any

    @contextmanager
    def turned_off(self) -> Iterator[None]:
        """Without the adapter, for a while."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(enabled=False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(enabled=True)


def load_shared(model: TorchModel) -> Any:
    """As `load_causal_lm`; Unadapted if this process already holds the model under an adapter. Raises as that."""
    key = (model.model, model.revision, model.dtype, model.num_gpus, model.trust_remote_code)
    is_changed = model.fp8 or model.compile  # in place
    held = _held.get(key)
    if model.adapter is None and held is not None and not is_changed:
        return Unadapted(held)
    loaded = load_causal_lm(model)
    if model.adapter is not None and not is_changed:
        names = Adapter(model).shapes
        base = loaded.get_base_model()
        if all(name.endswith(_FACTORS) for name in names) and hasattr(base.get_output_embeddings(), "in_features"):
            _held[key] = base
    return loaded
