"""Prompts to candidates: K responses of the policy to each, with their token counts and how they ended.

The policy reads a prompt by its own chat template. If generate.system_prompt is put before a prompt, the column of
prompts has it from then on: what is scored and trained on is what the policy has answered. A prompt that cannot be used
is dropped, with a reason of pipeline.drops.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema as s
from pipeline.config import Generate, SelfPlayConfig, Tokens, TorchModel
from pipeline.drops import Reason
from pipeline.errors import ModelError
from pipeline.models.packing import Int32Array
from pipeline.models.templates import ChatTemplate, Messages
from pipeline.selfplay.sampler import Request, Sampler, load_decoder, open_sampler, seed_of
from pipeline.steps.rows import drop_rows, kept_rows, set_column, spread
from pipeline.steps.work import Apply, Stage


def generate_stage(config: SelfPlayConfig, policy: TorchModel, generate: Generate | None = None) -> Stage:
    """Prompts to candidates, by a policy. Default of `generate`: that of the config."""
    generate = config.generate if generate is None else generate
    build = partial(_build_generate, generate, config.tokens, policy)
    return Stage(name="generate", build=build, model=generate, env=environment(generate))


def evaluation(config: SelfPlayConfig) -> Generate:
    """How held-out prompts are answered: as all prompts are, with what the section `evaluate` sets."""
    section = config.evaluate
    changes = {"num_responses": section.num_responses, "temperature": section.temperature, "seed": section.seed}
    max_tokens = config.generate.max_tokens if section.max_tokens is None else section.max_tokens
    return config.generate.model_copy(update={**changes, "max_tokens": max_tokens})


def environment(generate: Generate) -> dict[str, str]:
    """Environment variables that a process with the sampling engine must have from its start; the user's own win."""
    if generate.engine != "vllm":
        return {}
    from pipeline.models import vllm_engine

    return vllm_engine.environment(generate.num_threads, generate.engine_args)


class PromptRenderer:
    """Prompts as the policy reads them; those of more than `max_tokens` tokens cannot be used.

    `system_prompt` is put before prompts that have no system turn.

    Raises:
        ModelError: there is no usable chat template, or it has no place for the system prompt.
    """

    def __init__(self, tokenizer: Any, tokens: Tokens, max_tokens: int, system_prompt: str | None = None) -> None:
        self._template = ChatTemplate.of(tokenizer, tokens)
        self._max_tokens = max_tokens
        self._system_prompt = system_prompt
        if system_prompt is not None and not self._takes(system_prompt):
            raise ModelError(
                f"The chat template of {tokenizer.name_or_path} has no place for a system turn. Leave out "
                "generate.system_prompt, or set tokens.chat_template to a Jinja file that has one."
            )

    def messages(self, prompt: Messages) -> list[dict[str, str]]:
        """The turns of a prompt; the system prompt is put before them if they have none of their own."""
        turns = [dict(message) for message in prompt]
        if self._system_prompt is None or any(turn["role"] == "system" for turn in turns):
            return turns
        return [{"role": "system", "content": self._system_prompt}, *turns]

    def token_ids(self, messages: Messages, row: str = "") -> Int32Array | Reason:
        """Token ids up to where the answer begins, int32, or why they cannot be used; `row` is for the log."""
        ids = self._all_ids(messages, row)
        if isinstance(ids, Reason):
            return ids
        if not len(ids):
            return Reason.EMPTY_PROMPT
        return Reason.PROMPT_TOO_LONG if len(ids) > self._max_tokens else ids

    def _all_ids(self, messages: Messages, row: str = "") -> Int32Array | Reason:
        return self._template.outcome(lambda: self._template.ids(messages, add_generation_prompt=True), row)

    def _takes(self, system_prompt: str) -> bool:
        """Whether the template writes a system turn into the prompt: another one gives other tokens."""
        user = {"role": "user", "content": "?"}
        one, other = (
            self._all_ids([{"role": "system", "content": text}, user])
            for text in (system_prompt, f"{system_prompt} Be brief.")
        )
        return not isinstance(one, Reason) and not isinstance(other, Reason) and not np.array_equal(one, other)


class GenerateCandidates:
    """Adds K responses to every prompt."""

    def __init__(self, sampler: Sampler, renderer: PromptRenderer, generate: Generate) -> None:
        self._sampler = sampler
        self._renderer = renderer
        self._generate = generate

    def __call__(self, table: pa.Table) -> pa.Table:
        """Prompts in, candidates out: a row each, in the same order. The whole table is sampled as one call."""
        rows = kept_rows(table)
        messages = table.column(s.PROMPT).to_pylist()
        requests: dict[int, Request] = {}
        dropped: dict[int, Reason] = {}
        for row, name in zip(rows.tolist(), table.column(s.ID).take(pa.array(rows)).to_pylist(), strict=True):
            turns = self._renderer.messages(messages[row])
            ids = self._renderer.token_ids(turns, name)
            if isinstance(ids, Reason):
                dropped[row] = ids
            else:
                messages[row] = turns
                requests[row] = Request(prompt_ids=ids, seed=seed_of(self._generate.seed, "generate", name))
        sampled = [
            [response if response.text.strip() else replace(response, text="") for response in responses]
            for responses in self._sampler.sample(list(requests.values()), self._generate)
        ]
        for row, responses in zip(requests, sampled, strict=True):
            if not any(response.text for response in responses):
                dropped[row] = Reason.EMPTY_RESPONSES
        columns: dict[str, Sequence[Any]] = {
            s.RESPONSES: [[response.text for response in responses] for responses in sampled],
            s.FINISH_REASONS: [[response.finish_reason for response in responses] for responses in sampled],
            s.RESPONSE_TOKENS: [[response.num_tokens for response in responses] for responses in sampled],
            s.NUM_TOKENS_PROMPT: [len(request.prompt_ids) for request in requests.values()],
        }
        table = set_column(table, s.PROMPT, pa.array(messages, s.MESSAGES))
        for name, values in columns.items():
            of_type = s.CANDIDATE_SCHEMA.field(name).type
            table = set_column(table, name, spread(values, [*requests], num_rows=table.num_rows, of_type=of_type))
        return drop_rows(table.select(s.CANDIDATE_SCHEMA.names).cast(s.CANDIDATE_SCHEMA), dropped, stage="generate")

    def close(self) -> None:
        """Free the policy."""
        self._sampler.close()


def answering(
    generate: Generate, tokens: Tokens, policy: TorchModel, system_prompt: str | None = None
) -> tuple[Sampler, PromptRenderer]:
    """The policy in its engine, and how it reads prompts."""
    decoder = load_decoder(policy)
    longest = generate.max_prompt_tokens
    if decoder.context is not None:
        longest = min(longest, decoder.context - 1)  # room for an answer
    renderer = PromptRenderer(decoder.tokenizer, tokens, longest, system_prompt)
    return open_sampler(policy, generate), renderer


def _build_generate(generate: Generate, tokens: Tokens, policy: TorchModel) -> Apply:
    return GenerateCandidates(*answering(generate, tokens, policy, generate.system_prompt), generate)
