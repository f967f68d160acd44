"""The dtype and the memory of models on a CPU.

bfloat16 and float16 save time on a CPU with instructions for them. Without these torch emulates them, at a fifth of
float32's rate on matrix products. So such a CPU runs a half-precision model in float32: its weights, rounded to the
dtype asked for, are converted exactly. Scores on the two kinds of CPU differ by the noise of half precision, just as
scores on a CPU and a GPU do.
"""

import ctypes
from collections.abc import Mapping
from typing import Any, Final

import torch

# As torch names the instructions, on x86 and on Arm.
_INSTRUCTIONS: Final = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "avx10_2", "fp16_arith"),
}

# Options of glibc's mallopt and their values, in bytes. The first is the largest that glibc chooses by itself.
_MAP_ALONE: Final = (-3, 32 << 20)
_GIVE_BACK: Final = (-1, 1 << 30)


def has_arithmetic(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for a dtype; if not, torch emulates it."""
    if hasattr(torch.cpu, "get_capabilities"):
        found: Mapping[str, Any] = torch.cpu.get_capabilities()
    else:  # before torch 2.11 this is all it tells
        found = {
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),  # noqa: SLF001
            "amx_bf16": torch.cpu._is_amx_tile_supported(),  # noqa: SLF001
        }
    return dtype not in _INSTRUCTIONS or any(found.get(name) for name in _INSTRUCTIONS[dtype])


def in_own_arithmetic(model: Any) -> Any:
    """A transformers model, converted in place to a dtype that this CPU computes in. Quantised models stay."""
    if has_arithmetic(model.dtype) or getattr(model, "hf_quantizer", None) is not None:
        return model
    return model.float()


def keep_freed_memory() -> None:
    """Let this process keep up to a GiB of freed memory for the next tensors, where the C library is glibc.

    Otherwise a forward of a small model spends some 7% of its time on returning pages and taking them again.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (_MAP_ALONE, _GIVE_BACK):
            mallopt(option, value)
