"""Answers of one policy to many prompts at once, which on a CPU is several times faster than prompt by prompt.

Each answer has random numbers of its own. So two policies that are close to each other answer alike, and what differs
is their doing. A token is drawn from the 50 likeliest ones, since to sort a whole vocabulary costs as much as the
model. Prompts are padded on the left: rounding may follow the batch.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import Generate
from pipeline.selfplay.sampler import Decoder, Request, Response

_MOST_LIKELY: Final = 50


class BatchedSampler:
    """A `Sampler` on a model that is loaded already."""

    def __init__(self, model: Any, decoder: Decoder) -> None:
        self._model, self._decoder = model, decoder
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request], sampling: Generate) -> list[list[Response]]:
        """K responses to each request, in the order of the requests."""
        num, each, length = len(requests), sampling.num_responses, sampling.max_tokens
        longest = max(len(request.prompt_ids) for request in requests)
        ids = torch.zeros((num, longest), dtype=torch.int64)
        mask = torch.zeros((num, longest), dtype=torch.int64)
        for row, request in enumerate(requests):
            start = longest - len(request.prompt_ids)
            ids[row, start:] = torch.as_tensor(request.prompt_ids, dtype=torch.int64)
            mask[row, start:] = 1
        ids, mask = ids.to(self._device), mask.to(self._device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        output = self._model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        cache, logits = output.past_key_values, output.logits[:, -1].repeat_interleave(each, dim=0)
        cache.batch_repeat_interleave(each)
        mask = mask.repeat_interleave(each, dim=0)
        seeds = [[request.seed, index] for request in requests for index in range(each)]
        uniforms = np.stack([np.random.default_rng(seed).random(length) for seed in seeds], axis=1)
        stops = torch.tensor(self._decoder.stop_ids, dtype=torch.int64, device=self._device)
        stopped = torch.zeros(num * each, dtype=torch.bool, device=self._device)
        drawn: list[torch.Tensor] = []
        for step in range(length):
            drawn.append(_draw(logits, uniforms[step], sampling.temperature))
            stopped |= torch.isin(drawn[-1], stops)
            if step + 1 == length or bool(stopped.all()):
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            output = self._model(
                input_ids=drawn[-1][:, None],
                attention_mask=mask,
                position_ids=mask.sum(dim=1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]
        responses = [self._response(row) for row in torch.stack(drawn, dim=1).tolist()]
        return [responses[row * each : (row + 1) * each] for row in range(num)]

    def close(self) -> None:
        """The model belongs to the caller."""

    def _response(self, ids: list[int]) -> Response:
        end = next((i for i, token in enumerate(ids) if token in self._decoder.stop_ids), None)
        return self._decoder.response(ids if end is None else ids[: end + 1], stopped=end is not None)


def _draw(logits: torch.Tensor, uniforms: npt.NDArray[np.float64], temperature: float) -> torch.Tensor:
    """One token a row, int64 [num_rows]; uniforms in [0, 1), [num_rows]."""
    highest, tokens = logits.float().topk(_MOST_LIKELY, dim=-1)
    sums = torch.softmax(highest.double() / temperature, dim=-1).cumsum(dim=-1)
    wanted = torch.as_tensor(uniforms, device=logits.device)[:, None] * sums[:, -1:]
    place = torch.searchsorted(sums, wanted, right=True).clamp(max=_MOST_LIKELY - 1)
    return tokens.gather(-1, place)[:, 0]
