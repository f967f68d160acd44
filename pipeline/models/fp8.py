"""The linear layers of a decoder in 8-bit floating point (e4m3), on request.

Weights are rounded once, with a scale for each output feature. Inputs are rounded in each forward, with a scale for
each token, so the numbers of a token do not depend on the tokens beside it. Products are summed in float32. Embeddings,
norms, routers, adapters and heads stay as they are. A GPU that multiplies e4m3 does so at twice its rate for bfloat16;
a CPU gives equal numbers, slowly. Scores change, and the order of rows may change: `steps.fp8_ranks` checks that.
"""

import logging
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.errors import ModelError

logger = logging.getLogger(__name__)

_E4M3: Final = torch.float8_e4m3fn
_LARGEST: Final = torch.finfo(_E4M3).max
_SMALLEST_SCALE: Final = 1e-12
_MULTIPLE: Final = 16  # of both dimensions of a weight, for GPUs
_FIRST_GPU: Final = (8, 9)
# Routers choose experts by small differences, and adapters are too thin to gain.
_LEFT_OUT: Final = frozenset({"gate", "router", "lora_A", "lora_B"})


class Fp8Linear(torch.nn.Module):
    """A linear layer whose weight and inputs are rounded to e4m3; takes and gives the dtype of its inputs."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self.weight: torch.Tensor
        self.scale: torch.Tensor
        weight, scale = _rounded(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of shape (..., out_features) from inputs of shape (..., in_features)."""
        rows, scale = _rounded(inputs.reshape(-1, self.in_features))
        outputs: torch.Tensor = _product(rows, self.weight, scale, self.scale)
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)


# An operator of its own: torch's compiler cannot look into scaled_mm and would cut layers into pieces there.
@torch.library.custom_op("alignpot::fp8_product", mutates_args=())
def _product(
    rows: torch.Tensor, weight: torch.Tensor, rows_scale: torch.Tensor, weight_scale: torch.Tensor
) -> torch.Tensor:
    """Rows of shape (N, d) times a weight of shape (d', d): shape (N, d'), float32 on CPU and else bfloat16."""
    by_row = F.ScalingType.RowWise
    on_cpu = rows.device.type == "cpu"
    found: torch.Tensor = F.scaled_mm(
        rows,
        weight.t(),
        rows_scale,
        by_row,
        weight_scale,
        by_row,
        output_dtype=torch.float32 if on_cpu else torch.bfloat16,
        use_fast_accum=not on_cpu,
    )
    return found


@_product.register_fake
def _(rows: torch.Tensor, weight: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if rows.device.type == "cpu" else torch.bfloat16
    return rows.new_empty(rows.shape[0], weight.shape[0], dtype=dtype)


def use_fp8(model: Any) -> None:
    """Replace the linear layers of the decoder of a transformers model, whose adapters are unmerged, in place.

    Raises a ModelError if it has none.
    """
    decoder = model.base_model
    num_all = sum(parameter.numel() for parameter in decoder.parameters())
    num_rounded = 0
    for path, parent in list(decoder.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not torch.nn.Linear or not _LEFT_OUT.isdisjoint(f"{path}.{name}".split(".")):
                continue
            if child.in_features % _MULTIPLE == 0 and child.out_features % _MULTIPLE == 0:
                num_rounded += child.weight.numel()
                setattr(parent, name, Fp8Linear(child))
    if num_rounded == 0:
        raise ModelError(f"fp8: {type(model).__name__} has no linear layers of its own to round. Remove fp8.")
    logger.info("%s: %.0f%% of the decoder's weights are in fp8", type(model).__name__, 100 * num_rounded / num_all)


def require_fp8(device: torch.device) -> None:
    """Check that torch and a device can multiply e4m3. Raises a ModelError if they cannot."""
    if not hasattr(F, "scaled_mm"):
        raise ModelError(f"fp8 needs torch 2.10 or newer; this is {torch.__version__}. Update torch, or remove fp8.")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _FIRST_GPU:
        name = torch.cuda.get_device_name(device)
        raise ModelError(f"fp8 needs a GPU of compute capability 8.9 or newer; this is a {name}. Remove fp8.")


def _rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of shape (N, d) in e4m3, and the scale of each, shape (N, 1), float32."""
    if rows.dtype == torch.float16:  # it cannot hold small scales
        rows = rows.float()
    # A scale that was rounded down puts a number slightly above the largest e4m3 number, and it is rounded to that.
    scale = (torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True) / _LARGEST).clamp_min_(_SMALLEST_SCALE)
    return (rows / scale).to(_E4M3), scale.float()
