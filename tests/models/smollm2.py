"""SmolLM2-135M-Instruct and its tokenizer, of a size that this CPU can run."""

from pathlib import Path
from typing import Any

import torch

from pipeline.models.cpu import has_arithmetic

_LAYERS_IF_EMULATED = 4


def smollm2(directory: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model in evaluation mode, and its tokenizer.

    Where torch emulates the dtype, which takes some thirty times as long, only the model's first layers.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fewer = {} if has_arithmetic(dtype) else {"num_hidden_layers": _LAYERS_IF_EMULATED}
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, **fewer)
    return model.eval(), AutoTokenizer.from_pretrained(directory)
