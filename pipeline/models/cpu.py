"""What models on a CPU run in, and in which memory.

bfloat16 and float16 save time on a CPU that has instructions for them. Elsewhere torch emulates them, at a fifth of
float32's rate on matrix products. There a half-precision model is run in float32 arithmetic: its weights are those of
the dtype asked for, each converted exactly, and what is computed from them is rounded less. Scores on the two kinds of
CPU differ by the half precision's noise, as those of a CPU and a GPU do.
"""

import ctypes
from typing import Any, Final

import torch

# As torch names the instructions, on x86 and on Arm.
_INSTRUCTIONS: Final = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "avx10_2", "fp16_arith"),
}

_TILES: Final = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}

# Options of glibc's mallopt and their values, in bytes. The first is the largest that glibc comes to by itself.
_MAP_ALONE: Final = (-3, 32 << 20)
_GIVE_BACK: Final = (-1, 1 << 30)


def has_arithmetic(dtype: torch.dtype) -> bool:
    """Whether this CPU computes in a dtype itself, rather than torch in its place."""
    return dtype not in _INSTRUCTIONS or any(_capabilities().get(name) for name in _INSTRUCTIONS[dtype])


def rows_stand_alone(dtype: torch.dtype) -> bool:
    """Whether a row of a matrix product has the same bits whatever rows are multiplied with it (see packing).

    Not so in half precision on CPUs with tiles (AMX), where the number of rows decides how a product is computed.
    """
    return dtype not in _TILES or not _capabilities().get(_TILES[dtype])


def in_own_arithmetic(model: Any) -> Any:
    """A transformers model whose floating-point parameters this CPU computes with, converted in place.

    Quantised models are left as they are.
    """
    if has_arithmetic(model.dtype) or getattr(model, "hf_quantizer", None) is not None:
        return model
    return model.float()


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors free for the next ones, up to a GiB, where the C library is glibc.

    A forward of a small model otherwise spends some 7% of its time on giving pages back and taking them anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (_MAP_ALONE, _GIVE_BACK):
            mallopt(option, value)


def _capabilities() -> dict[str, Any]:
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    return {  # before torch 2.11, which knows no more
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),  # noqa: SLF001
        "amx_bf16": torch.cpu._is_amx_tile_supported(),  # noqa: SLF001
    }
