"""Sampling with transformers alone: slower than vLLM, for models and machines that vLLM does not support.

The K responses to one prompt are one batch: the prompt is read once, its cache repeated K times, and nothing is padded.
Each response has random numbers of its own. So neither the prompts beside it nor their order can change it.
"""

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.config import Generate, TorchModel
from pipeline.errors import ModelError
from pipeline.models.loading import load_causal_lm
from pipeline.selfplay.sampler import GREEDY, Request, Response, load_decoder


class TransformersSampler:
    """A policy that transformers runs; an adapter stays unmerged on top of it.

    Raises:
        ModelError: the model cannot be loaded, or has no cache of keys and values.
    """

    def __init__(self, model: TorchModel, generate: Generate) -> None:
        placed = {"num_gpus": generate.num_gpus, "num_threads": generate.num_threads}
        dtype = {} if generate.dtype == "auto" else {"dtype": generate.dtype}
        self._decoder = load_decoder(model)
        self._num_threads = generate.num_threads
        self._model: Any = load_causal_lm(model.model_copy(update={**placed, **dtype}))
        self._device = next(self._model.parameters()).device

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request], sampling: Generate) -> list[list[Response]]:
        """K responses to each request, in the order of the requests."""
        if self._device.type == "cpu":
            torch.set_num_threads(self._num_threads)
        return [self._respond(request, sampling) for request in requests]

    def close(self) -> None:
        """Free the model."""
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _respond(self, request: Request, sampling: Generate) -> list[Response]:
        context, num_prompt, length = self._decoder.context, len(request.prompt_ids), sampling.max_tokens
        if context is not None:
            if num_prompt >= context:
                raise ModelError(
                    f"A prompt of {num_prompt} tokens leaves no room for an answer in {context} positions."
                )
            length = min(length, context - num_prompt)
        ids = torch.as_tensor(request.prompt_ids, dtype=torch.int64, device=self._device)[None]
        output = self._model(input_ids=ids, use_cache=True, logits_to_keep=1)
        cache: Any = getattr(output, "past_key_values", None)
        if not hasattr(cache, "batch_repeat_interleave"):
            raise ModelError(
                f"{type(self._model).__name__} has no cache that can be repeated: use generate.engine: vllm."
            )
        cache.batch_repeat_interleave(sampling.num_responses)
        logits = output.logits[:, -1].expand(sampling.num_responses, -1)
        # Each response has random numbers of its own, so that more responses change none of the others.
        seeds = [[request.seed, index] for index in range(sampling.num_responses)]
        uniforms = np.stack([np.random.default_rng(seed).random(length) for seed in seeds], axis=1)
        drawn: list[torch.Tensor] = []
        stopped = torch.zeros(sampling.num_responses, dtype=torch.bool, device=self._device)
        stops = torch.tensor(self._decoder.stop_ids, dtype=torch.int64, device=self._device)
        for step in range(length):
            drawn.append(draw(logits, uniforms[step], sampling))
            stopped |= torch.isin(drawn[-1], stops)
            if step + 1 == length or bool(stopped.all()):
                break
            output = self._model(input_ids=drawn[-1][:, None], past_key_values=cache, use_cache=True)
            logits = output.logits[:, -1]
        return [self._response(row) for row in torch.stack(drawn, dim=1).tolist()]

    def _response(self, ids: list[int]) -> Response:
        """The response in a row that may continue after its end."""
        end = next((i for i, token in enumerate(ids) if token in self._decoder.stop_ids), None)
        return self._decoder.response(ids if end is None else ids[: end + 1], stopped=end is not None)


def draw(logits: torch.Tensor, uniforms: np.ndarray[Any, Any], sampling: Generate) -> torch.Tensor:
    """One token a row, from the nucleus of its distribution: int64, shape (rows,).

    logits has shape (rows, vocabulary); uniforms, float64 in [0, 1), has shape (rows,): one number gives one token.
    """
    if sampling.temperature < GREEDY:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1).double()
    if not bool(torch.isfinite(probabilities).all()):
        raise ModelError("The policy's logits are not finite, so nothing can be sampled. Try generate.dtype: float32.")
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    inside = ordered.cumsum(dim=-1) - ordered < sampling.top_p
    nucleus = torch.where(inside, ordered, 0.0).cumsum(dim=-1)
    wanted = torch.as_tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * nucleus[:, -1:]
    index = torch.searchsorted(nucleus, wanted, right=True)
    return tokens.gather(-1, torch.minimum(index, inside.sum(dim=-1, keepdim=True) - 1))[:, 0]
