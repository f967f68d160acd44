"""The policy asked for one answer to each of some messages, as the rewriting of prompts wants it."""

from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from pipeline.config import Evolve
from pipeline.drops import Reason
from pipeline.selfplay.candidates import PromptRenderer
from pipeline.selfplay.evolve import evolve
from pipeline.selfplay.sampler import Request, Response, Sampler, Sampling
from pipeline.sources.rows import Turn


class EvolvePrompts:
    """Tasks of `plan_evolution` in, new prompts out, a row each; the whole table is sampled as one call.

    Args:
        sampler: the policy, loaded.
        renderer: how the policy reads messages.
        config: sampling and its seed.
        max_prompt_tokens: longer requests are not asked.
    """

    def __init__(self, sampler: Sampler, renderer: PromptRenderer, config: Evolve, max_prompt_tokens: int) -> None:
        self._sampler = sampler
        self._renderer = renderer
        self._max_prompt_tokens = max_prompt_tokens
        self._sampling = Sampling(
            num_responses=1, temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens
        )
        self._evolve = partial(evolve, ask=self._ask, config=config)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The new prompt of each task, or why there is none."""
        return self._evolve(table)

    def close(self) -> None:
        """Free the model."""
        self._sampler.close()

    def _ask(self, requests: Sequence[list[Turn]], seeds: Sequence[int]) -> list[Response | None]:
        ids = [self._renderer.token_ids(messages) for messages in requests]
        asked = {
            i: Request(prompt_ids=found, seed=seeds[i])
            for i, found in enumerate(ids)
            if not isinstance(found, Reason) and len(found) <= self._max_prompt_tokens
        }
        answers = self._sampler.sample(list(asked.values()), self._sampling) if asked else []
        said = {i: responses[0] for i, responses in zip(asked, answers, strict=True)}
        return [said.get(i) for i in range(len(ids))]
