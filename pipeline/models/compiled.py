"""The layers of a decoder compiled by torch, on request.

What lies between matrix products and attention (norms, rotary embeddings, activations, residual sums) then runs as a
few loops instead of one pass over memory for each operation. Products and attention stay the kernels that they are.
Sums move by a rounding, and depend on order, company and budget no more than those of layers as they are written.
Layers share their code, so that one is compiled for all of a kind, for any number of tokens; torch keeps the result on
disk for the next process.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch

from pipeline.errors import ModelError
from pipeline.models.layers import layers_of


def compile_layers(decoder: torch.nn.Module, num_layers: int | None) -> None:
    """Have the layers of a decoder, and its norms, compiled when they are next called.

    Raises:
        ModelError: there is no list of as many layers.
    """
    layers = layers_of(decoder, num_layers)
    if layers is None:
        raise ModelError(f"compile: {type(decoder).__name__} has no list of layers. Set compile: false.")
    norms = [child for child in decoder.children() if "Norm" in type(child).__name__]
    for module in (*layers, *norms):
        module.compile(dynamic=True)


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled layers as they were written, for a while."""
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
