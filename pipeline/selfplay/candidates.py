"""Prompts to candidates: K responses of the policy to each, with their token counts and how they ended.

The policy reads a prompt by its own chat template. Where generate.system_prompt is put before a prompt, it stands in
the column of prompts from then on: what is scored and trained on is what the policy has answered. A prompt that cannot
be used is dropped, with a reason of pipeline.drops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import Generate, Tokens
from pipeline.drops import Reason
from pipeline.errors import ModelError
from pipeline.models.packing import Int32Array
from pipeline.models.templates import ChatTemplate, Messages
from pipeline.schema import (
    CANDIDATE_SCHEMA,
    FINISH_REASONS,
    ID,
    MESSAGES,
    NUM_TOKENS_PROMPT,
    PROMPT,
    RESPONSE_TOKENS,
    RESPONSES,
)
from pipeline.selfplay.sampler import Request, Response, Sampler, Sampling, seed_of
from pipeline.steps.rows import drop_rows, kept_rows, set_column, spread


class PromptRenderer:
    """Prompts as the policy reads them.

    Args:
        tokenizer: the policy's transformers tokenizer.
        tokens: the template, where the tokenizer's own is not wanted, and the date it is told.
        system_prompt: put before prompts that have no system turn; null for none.

    Raises:
        ModelError: there is no chat template that can be used, or it has no place for a system turn that is asked for.
    """

    def __init__(self, tokenizer: Any, tokens: Tokens, system_prompt: str | None) -> None:
        self._template = ChatTemplate(tokenizer, tokens.chat_template, tokens.date)
        self._system_prompt = system_prompt
        if system_prompt is not None and not self._takes(system_prompt):
            raise ModelError(
                f"The chat template of {tokenizer.name_or_path} has no place for a system turn. Leave out "
                "generate.system_prompt, or set tokens.chat_template to a Jinja file that has one."
            )

    def messages(self, prompt: Messages) -> list[dict[str, str]]:
        """The turns of a prompt, with the system prompt where it has none of its own."""
        turns = [dict(message) for message in prompt]
        if self._system_prompt is None or any(turn["role"] == "system" for turn in turns):
            return turns
        return [{"role": "system", "content": self._system_prompt}, *turns]

    def token_ids(self, messages: Messages, row: str = "") -> Int32Array | Reason:
        """Token ids up to where the answer begins, int32, or the reason why there are none; `row` is for the log."""
        return self._template.outcome(lambda: self._template.ids(messages, add_generation_prompt=True), row)

    def _takes(self, system_prompt: str) -> bool:
        """Whether the template writes a system turn into the prompt."""
        user = {"role": "user", "content": "?"}
        with_it = self.token_ids([{"role": "system", "content": system_prompt}, user])
        without = self.token_ids([{"role": "system", "content": f"{system_prompt} Be brief."}, user])
        return (
            not isinstance(with_it, Reason) and not isinstance(without, Reason) and not np.array_equal(with_it, without)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rendered:
    messages: list[dict[str, str]]
    ids: Int32Array


class GenerateCandidates:
    """Adds K responses to every prompt.

    Args:
        sampler: the policy, loaded.
        renderer: how the policy reads prompts.
        generate: K, the sampling, and its seed.
        max_prompt_tokens: prompts of more tokens are dropped.
    """

    def __init__(
        self, sampler: Sampler, renderer: PromptRenderer, generate: Generate, max_prompt_tokens: int | None = None
    ) -> None:
        self._sampler = sampler
        self._renderer = renderer
        self._seed = generate.seed
        self._max_prompt_tokens = generate.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens
        self._sampling = Sampling(
            num_responses=generate.num_responses,
            temperature=generate.temperature,
            top_p=generate.top_p,
            max_tokens=generate.max_tokens,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """Prompts in, candidates out: a row each, in the same order. The whole table is sampled as one call."""
        rows = kept_rows(table)
        prompts = table.select([ID, PROMPT]).take(pa.array(rows)).to_pylist()
        outcomes = {
            int(row): self._render(prompt[ID], prompt[PROMPT]) for row, prompt in zip(rows, prompts, strict=True)
        }
        ids = {int(row): str(prompt[ID]) for row, prompt in zip(rows, prompts, strict=True)}
        rendered = {row: outcome for row, outcome in outcomes.items() if isinstance(outcome, _Rendered)}
        requests = [
            Request(prompt_ids=found.ids, seed=seed_of(self._seed, "generate", ids[row]))
            for row, found in rendered.items()
        ]
        sampled = [
            [_without_blank(response) for response in responses]
            for responses in self._sampler.sample(requests, self._sampling)
        ]
        dropped = {row: outcome for row, outcome in outcomes.items() if isinstance(outcome, Reason)}
        for row, responses in zip(rendered, sampled, strict=True):
            if not any(response.text for response in responses):
                dropped[row] = Reason.EMPTY_RESPONSES
        return drop_rows(_with_responses(table, rendered, sampled), dropped, stage="generate")

    def close(self) -> None:
        """Free the policy."""
        self._sampler.close()

    def _render(self, row: str, prompt: Messages) -> _Rendered | Reason:
        """A prompt as the policy reads it, or the reason why it cannot be used."""
        messages = self._renderer.messages(prompt)
        ids = self._renderer.token_ids(messages, row)
        if isinstance(ids, Reason):
            return ids
        if not len(ids):
            return Reason.EMPTY_PROMPT
        return Reason.PROMPT_TOO_LONG if len(ids) > self._max_prompt_tokens else _Rendered(messages=messages, ids=ids)


def _without_blank(response: Response) -> Response:
    """The response, its text empty where it holds nothing but white space."""
    if response.text.strip() or not response.text:
        return response
    return Response(text="", num_tokens=response.num_tokens, finish_reason=response.finish_reason)


def _with_responses(
    table: pa.Table, rendered: Mapping[int, _Rendered], sampled: Sequence[Sequence[Response]]
) -> pa.Table:
    rows = list(rendered)
    messages = table.column(PROMPT).to_pylist()
    for row, found in rendered.items():
        messages[row] = found.messages
    columns: dict[str, list[Any]] = {
        RESPONSES: [[response.text for response in responses] for responses in sampled],
        FINISH_REASONS: [[response.finish_reason for response in responses] for responses in sampled],
        RESPONSE_TOKENS: [[response.num_tokens for response in responses] for responses in sampled],
        NUM_TOKENS_PROMPT: [len(found.ids) for found in rendered.values()],
    }
    table = set_column(table, PROMPT, pa.array(messages, MESSAGES))
    for name, values in columns.items():
        of_type = CANDIDATE_SCHEMA.field(name).type
        table = set_column(table, name, spread(values, rows, num_rows=table.num_rows, of_type=of_type))
    return table.select(CANDIDATE_SCHEMA.names).cast(CANDIDATE_SCHEMA)
