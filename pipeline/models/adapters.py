"""A LoRA adapter as its trainer leaves it: weights, often a tokenizer with its chat template, new tokens, or a head.

The tokenizer and the template in the adapter's folder are those that it was trained with: they take the place of the
base model's. Embeddings are resized to the adapter's. A head that the base model lacks comes from the adapter.
"""

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from pipeline.config import TorchModel
from pipeline.errors import ModelError
from pipeline.models.fingerprints import is_local
from pipeline.shown import listed

TOKENIZER_FILES: Final = ("tokenizer_config.json", "tokenizer.json")
TEMPLATE_FILE: Final = "chat_template.jinja"
_WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_HEADS: Final = ("score", "classifier")
_LORA: Final = "lora_"

_log = logging.getLogger(__name__)


class Adapter:
    """The adapter of a model's section, by its files. Its weights are read when it is attached."""

    def __init__(self, model: TorchModel) -> None:
        if model.adapter is None:
            raise ValueError("the model has no adapter")
        self.name, self.revision = model.adapter, model.adapter_revision

    @property
    def has_tokenizer(self) -> bool:
        """Whether its folder holds a tokenizer."""
        return any(self._file(name) is not None for name in TOKENIZER_FILES)

    @property
    def template(self) -> str | None:
        """The chat template in its folder, if it is a file of its own."""
        path = self._file(TEMPLATE_FILE)
        return None if path is None else path.read_text(encoding="utf-8")

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each of its weights, by the name of the weight in the base model."""
        from safetensors import safe_open

        path = self._file(_WEIGHTS)
        if path is None:
            raise ModelError(f"Adapter {self.name} has no {_WEIGHTS}. Save it again with save_pretrained.")
        with safe_open(path, framework="np") as file:
            return {name.removeprefix(_PREFIX): tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    @property
    def num_labels(self) -> int | None:
        """Outputs of the classifier's head that it brings."""
        heads = [shape[0] for name, shape in self.shapes.items() if name.split(".")[0] in _HEADS and len(shape) == 2]
        return heads[-1] if heads else None

    def fit_embeddings(self, loaded: Any, tokenizer: Any) -> None:
        """Give a model the rows of embeddings that the adapter was trained with. tokenizer: that of the adapter.

        Raises a ModelError if the adapter's tokens have no embeddings. Padding needs none: no sequence is padded.
        """
        num_tokens = 1 + max(index for token, index in tokenizer.get_vocab().items() if token != tokenizer.pad_token)
        table, head = loaded.get_input_embeddings(), loaded.get_output_embeddings()
        names = {id(module): name for name, module in loaded.named_modules()}
        own, out = names[id(table)], None if head is None else names[id(head)]
        has_rows = {name: shape for name, shape in self.shapes.items() if name.startswith(f"{own}.")}
        wanted = _rows(self.shapes, own) or (None if out is None else _rows(self.shapes, out))
        if wanted is None and any("trainable_tokens" in name for name in has_rows):
            wanted = max(num_tokens, table.num_embeddings)
        rows = wanted or table.num_embeddings
        is_tied = head is not None and head.weight is table.weight
        lacks_head = (
            rows > table.num_embeddings and head is not None and not is_tied and _rows(self.shapes, str(out)) is None
        )
        if num_tokens > rows or lacks_head:
            raise ModelError(
                f"Adapter {self.name} was trained with {num_tokens} tokens, the model has embeddings of "
                f"{table.num_embeddings}, and the adapter brings none for the new tokens"
                f"{' in the output layer' if lacks_head else ''}. Save it with its embeddings (peft: "
                "save_embedding_layers=True), or merge it into the model and name that."
            )
        if rows != table.num_embeddings:
            loaded.resize_token_embeddings(rows, mean_resizing=False)

    def attach(self, loaded: Any) -> Any:
        """The model with the adapter on top, unmerged. Modules that were trained whole take their places.

        Raises:
            ModelError: weights of the adapter have no place in the model, or it lacks some.
            Exception: whatever peft raises.
        """
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
        from peft.utils.other import ModulesToSaveWrapper

        if PeftConfig.from_pretrained(self.name, revision=self.revision).is_prompt_learning:
            raise ModelError(f"Adapter {self.name} adds prompt tokens; wanted one that changes weights, as LoRA.")
        adapted = PeftModel.from_pretrained(loaded, self.name, revision=self.revision, is_trainable=False)
        state = get_peft_model_state_dict(adapted, save_embedding_layers=True)
        places = {name.removeprefix(_PREFIX) for name in state}
        astray = sorted(name for name in self.shapes if name not in places and _LORA not in name)
        lacking = sorted(name for name in places if name not in self.shapes and _LORA in name)
        if astray or lacking:
            what = f"brings {listed(astray[:3])}, for which the model has no place" if astray else ""
            what = what or f"lacks {listed(lacking[:3])}"
            raise ModelError(
                f"Adapter {self.name} does not fit {type(loaded).__name__}: it {what}. Name the model that it was "
                "trained on, under the role that it was trained for."
            )
        for path, module in list(adapted.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):
                parent, _, leaf = path.rpartition(".")
                setattr(adapted.get_submodule(parent), leaf, module.modules_to_save[module.active_adapters[0]])
        return adapted

    def _file(self, name: str) -> Path | None:
        """A file of the adapter on this machine; None if it has none of this name."""
        if is_local(self.name):
            path = Path(self.name, name)
            return path if path.exists() else None
        from transformers.utils import cached_file

        try:
            found = cached_file(self.name, name, revision=self.revision, _raise_exceptions_for_missing_entries=False)
        except OSError:
            _log.warning("the hub cannot say whether adapter %s has a %s: taken as if it has none", self.name, name)
            return None
        return None if found is None else Path(found)


def _rows(shapes: Mapping[str, tuple[int, ...]], module: str) -> int | None:
    """Rows of an embedding or output layer that an adapter brings, or that its LoRA factors were made for."""
    for kind in ("weight", "base_layer.weight", "lora_B.weight"):
        if f"{module}.{kind}" in shapes:
            return shapes[f"{module}.{kind}"][0]
    factor = shapes.get(f"{module}.lora_embedding_A")
    return None if factor is None else factor[1]
