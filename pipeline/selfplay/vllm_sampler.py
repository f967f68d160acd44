"""Sampling with vLLM's offline engine, on GPUs and CPUs.

The engine runs in this process: nothing outlives it when it is killed. Prompts are token ids, and text is decoded here,
as for every engine. Measured on a CPU in float32: the same call gives the same tokens, in the same process and in
another one, and the prompts beside a response do not change it.
"""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.config import Generate, TorchModel
from pipeline.errors import ModelError
from pipeline.models.loading import load_errors
from pipeline.models.vllm_engine import (
    arguments_of,
    dtype_here,
    environment,
    import_vllm,
    shut_down,
    starting,
    use_threads,
)
from pipeline.selfplay.sampler import GREEDY, Request, Response, load_decoder

_LORA_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)


class VllmSampler:
    """A policy that vLLM runs, which gets a LoRA adapter as such.

    Raises:
        ModelError: vLLM is not installed, or cannot run the model.
    """

    def __init__(self, model: TorchModel, generate: Generate) -> None:
        env = environment(generate.num_threads, generate.engine_args)
        vllm = import_vllm(env, key="generate.engine: vllm", otherwise="set generate.engine: transformers")
        self._parameters = vllm.SamplingParams
        self._decoder = load_decoder(model)
        self._num_threads = generate.num_threads
        arguments = engine_arguments(model, generate, self._decoder.context)
        with load_errors("vLLM cannot run", model, _remedy(model)), starting(self._num_threads):
            self._lora = None if model.adapter is None else _lora_request(model)
            self._engine = vllm.LLM(**arguments)

    def sample(self, requests: Sequence[Request], sampling: Generate) -> list[list[Response]]:
        """K responses to each request, in the order of the requests."""
        if not requests:
            return []
        use_threads(self._num_threads)
        limit = self._engine.llm_engine.model_config.max_model_len
        longest = max(len(request.prompt_ids) for request in requests)
        if longest >= limit:
            raise ModelError(
                f"A prompt of {longest} tokens leaves no room for an answer in vLLM's max_model_len of {limit}. Lower "
                "generate.max_prompt_tokens, or raise generate.max_tokens or engine_args.max_model_len."
            )
        greedy = sampling.temperature < GREEDY  # then all K responses are the same: one is sampled and repeated
        shared = {
            "n": 1 if greedy else sampling.num_responses,
            "temperature": 0.0 if greedy else sampling.temperature,
            "top_p": 1.0 if greedy else sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": list(self._decoder.stop_ids),
            "detokenize": False,
        }
        outputs = self._engine.generate(
            [{"prompt_token_ids": request.prompt_ids.tolist()} for request in requests],
            [self._parameters(seed=request.seed, **shared) for request in requests],
            use_tqdm=False,
            lora_request=self._lora,
        )
        repeats = sampling.num_responses if greedy else 1
        return [[self._response(sample) for sample in output.outputs] * repeats for output in outputs]

    def close(self) -> None:
        """Free the model, and the memory that the engine has reserved."""
        engine, self._engine = self._engine, None
        if engine is not None:
            shut_down(engine)
        del engine
        gc.collect()

    def _response(self, sample: Any) -> Response:
        if sample.finish_reason not in ("stop", "length"):
            raise ModelError(f"vLLM ended a response with {sample.finish_reason!r}; wanted stop or length.")
        return self._decoder.response(list(sample.token_ids), stopped=sample.finish_reason == "stop")


def engine_arguments(model: TorchModel, generate: Generate, context: int | None) -> dict[str, Any]:
    """Arguments of `vllm.LLM`, for a model of so many positions; those of generate.engine_args win."""
    length = generate.max_prompt_tokens + generate.max_tokens
    ours = arguments_of(model, generate, generate.engine_args) | {
        "dtype": dtype_here(model.dtype) if generate.dtype == "auto" else generate.dtype,
        "max_model_len": length if context is None else min(length, context),
        "enable_prefix_caching": True,
    }
    if model.adapter is not None:
        ours |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(model)}
    return ours | generate.engine_args


def _lora_rank(model: TorchModel) -> int:
    """The smallest rank known to vLLM that is not below the adapter's."""
    from peft import PeftConfig

    with load_errors("vLLM cannot run", model, _remedy(model)):
        config = PeftConfig.from_pretrained(model.adapter, revision=model.adapter_revision)
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


def _remedy(model: TorchModel) -> str:
    remedy = "Try other generate.engine_args, or generate.engine: transformers."
    if model.adapter is not None:
        return f"It has an adapter: merge it into the model, as an adapter may be what vLLM does not take. {remedy}"
    return remedy
