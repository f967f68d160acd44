"""What a self-play run will take, before anything is loaded: rows, tokens and GPU-hours of every step.

    reading P prompt or response tokens    2 x parameters x P FLOP, at `estimate.scoring_mfu` of `estimate.gpu_flops`
    training on P tokens                   6 x parameters x P FLOP, at `estimate.training_mfu`; 4 for a LoRA adapter, as
                                           frozen weights need no gradient; 2 more where DPO runs its reference beside
    generating P tokens                    P / `estimate.decode_tokens_per_s` seconds of one GPU

A prompt is read once for all its K responses. Every prompt is taken to give all the pairs that `pair` allows, and every
selected pair of a step another prompt; loading models, storage and idle GPUs are left out. So the figures say what to
expect within a factor of two or so, not what to budget to the hour.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from pipeline.config import Estimate, SelfPlayConfig
from pipeline.errors import ConfigError
from pipeline.selection.text import aligned
from pipeline.selfplay.strategies import template_of

_SECONDS_PER_HOUR: Final = 3600.0
_CHARS_PER_TOKEN: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """One step of one round; `rows` are prompts, requests or pairs, as the step has them."""

    round: int
    step: str
    rows: int
    tokens_generated: float = 0.0
    tokens_read: float = 0.0
    """Without a gradient: prompts before their responses are generated, dialogues that are scored."""
    tokens_trained: float = 0.0
    gpu_hours: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All steps in order, round 0 being the first policy's measurement."""

    num_prompts: int
    steps: tuple[StepCost, ...]
    assumed: Estimate

    @cached_property
    def total(self) -> StepCost:
        """The sums; its rows are the prompts that the run starts from."""
        return StepCost(
            round=max(step.round for step in self.steps),
            step="in all",
            rows=self.num_prompts,
            tokens_generated=math.fsum(step.tokens_generated for step in self.steps),
            tokens_read=math.fsum(step.tokens_read for step in self.steps),
            tokens_trained=math.fsum(step.tokens_trained for step in self.steps),
            gpu_hours=math.fsum(step.gpu_hours for step in self.steps),
        )


def estimate(config: SelfPlayConfig, num_prompts: int | None = None) -> Plan:
    """The plan of a run over so many prompts, held-out ones included; None: as many as `estimate.num_prompts` says.

    Raises:
        ConfigError: no prompt would be left to train on.
    """
    given = config.estimate.num_prompts if num_prompts is None else num_prompts
    given = given if config.prompts.limit is None else min(given, config.prompts.limit)
    if given <= config.evaluate.num_prompts:
        raise ConfigError(
            f"evaluate.num_prompts holds out {config.evaluate.num_prompts} of {given} prompts and leaves none to train "
            "on. Lower it, or give more prompts."
        )
    return Plan(num_prompts=given, steps=tuple(_Estimator(config).steps(given)), assumed=config.estimate)


def render_estimate(plan: Plan) -> str:
    """The steps as a table, with what was assumed."""
    head = ("round  step", "rows", "tokens generated", "tokens read", "tokens trained", "GPU-hours")
    lines = [_line(f"{step.round:>5}  {step.step}", step) for step in plan.steps]
    given = plan.assumed
    note = (
        f"Assumed: prompts of {given.prompt_tokens:g} tokens, responses of {given.response_tokens:g}; "
        f"{given.policy_params / 1e9:g}e9 parameters of the policy, {given.reward_params / 1e9:g}e9 of the reward "
        f"model;\n{given.gpu_flops:.3g} FLOP/s of a GPU, {given.scoring_mfu:.0%} of it used in scoring and "
        f"{given.training_mfu:.0%} in training; {given.decode_tokens_per_s:g} tokens generated in a second. "
        "Set them under estimate."
    )
    return f"{aligned([head, *lines, _line('       in all', plan.total)])}\n\n{note}"


def _line(name: str, step: StepCost) -> tuple[str, ...]:
    tokens = (step.tokens_generated, step.tokens_read, step.tokens_trained)
    return (name, f"{step.rows:,}", *(f"{round(number):,}" for number in tokens), f"{step.gpu_hours:,.2f}")


class _Estimator:
    """The costs of the steps of one config."""

    def __init__(self, config: SelfPlayConfig) -> None:
        self._config = config
        self._assumed = config.estimate
        self._response = min(self._assumed.response_tokens, config.generate.max_tokens)
        self._prompt = min(self._assumed.prompt_tokens, config.generate.max_prompt_tokens)

    def steps(self, num_prompts: int) -> Iterator[StepCost]:
        """Every step of every round."""
        config, held_out = self._config, self._config.evaluate.num_prompts
        yield from self._measure(0, held_out)
        trained_on = 0
        for number in range(1, config.rounds + 1):
            selected = base = self._num_selected(num_prompts - held_out)
            yield from self._expand(number, num_prompts - held_out)
            if config.evolve is not None:
                parents = min(base, num_prompts - held_out)
                yield self._evolve(number, parents)
                kept = int(parents * self._strategies * self._assumed.evolved_kept)
                yield from self._expand(number, kept, what="evolved: ")
                selected += self._num_selected(kept)
            if config.train is not None:
                trained_on = selected + (trained_on if config.train.data == "all" else 0)
                yield self._train(number, trained_on)
                yield from self._measure(number, held_out)
                yield self._score(number, base, "score after training", num_models=1)

    @property
    def _strategies(self) -> int:
        evolve = self._config.evolve
        if evolve is None:
            return 0
        return len(evolve.strategies) if evolve.per_prompt is None else min(evolve.per_prompt, len(evolve.strategies))

    def _num_pairs(self, num_prompts: int) -> int:
        return num_prompts * min(self._config.pair.per_prompt, self._config.generate.num_responses // 2)

    def _num_selected(self, num_prompts: int) -> int:
        select, pairs = self._config.select, self._num_pairs(num_prompts)
        if select.per_prompt is not None:
            pairs = min(pairs, select.per_prompt * num_prompts)
        if select.k is not None:
            return min(select.k, pairs)
        return pairs if select.fraction is None else int(pairs * select.fraction)

    def _expand(self, number: int, num_prompts: int, what: str = "") -> Iterator[StepCost]:
        yield from self._answer(number, num_prompts, self._config.generate.num_responses, self._response, what)
        num_models = 2 if self._config.needs_reference else 1
        yield self._score(number, self._num_pairs(num_prompts), f"{what}score", num_models=num_models)

    def _measure(self, number: int, num_prompts: int) -> Iterator[StepCost]:
        evaluate = self._config.evaluate
        most = self._config.generate.max_tokens if evaluate.max_tokens is None else evaluate.max_tokens
        response = min(self._assumed.response_tokens, most)
        yield from self._answer(number, num_prompts, evaluate.num_responses, response, "measure: ")

    def _answer(self, number: int, num_prompts: int, k: int, response: float, what: str) -> Iterator[StepCost]:
        generated, prompts = num_prompts * k * response, num_prompts * self._prompt
        yield self._generated(number, f"{what}generate", num_prompts, generated, prompts)
        dialogues = num_prompts * k * (self._prompt + response)
        hours = self._reading(dialogues, self._assumed.reward_params)
        yield StepCost(round=number, step=f"{what}annotate", rows=num_prompts, tokens_read=dialogues, gpu_hours=hours)

    def _evolve(self, number: int, num_parents: int) -> StepCost:
        evolve, requests = self._config.evolve, num_parents * self._strategies
        assert evolve is not None  # noqa: S101
        templates = [len(template_of(name).text) / _CHARS_PER_TOKEN for name in evolve.strategies]
        read = requests * (self._prompt + sum(templates) / len(templates))
        return self._generated(number, "evolve", requests, requests * min(self._prompt, evolve.max_tokens), read)

    def _generated(self, number: int, step: str, rows: int, generated: float, read: float) -> StepCost:
        decoding = generated / self._assumed.decode_tokens_per_s / _SECONDS_PER_HOUR
        hours = decoding + self._reading(read, self._assumed.policy_params)
        return StepCost(
            round=number, step=step, rows=rows, tokens_generated=generated, tokens_read=read, gpu_hours=hours
        )

    def _score(self, number: int, num_pairs: int, step: str, *, num_models: int) -> StepCost:
        read = num_models * num_pairs * self._pair_tokens
        hours = self._reading(read, self._assumed.policy_params)
        return StepCost(round=number, step=step, rows=num_pairs, tokens_read=read, gpu_hours=hours)

    def _train(self, number: int, num_pairs: int) -> StepCost:
        train = self._config.train
        assert train is not None  # noqa: S101
        seen = num_pairs * train.epochs
        if train.max_steps is not None:
            seen = min(seen, train.max_steps * train.batch_size * train.accumulate)
        tokens = seen * self._pair_tokens
        flops = 4.0 if train.adapter == "lora" else 6.0
        if train.method == "dpo" and not train.precomputed_reference:
            flops += 2.0
        rate = self._assumed.gpu_flops * self._assumed.training_mfu
        hours = flops * self._assumed.policy_params * tokens / rate / _SECONDS_PER_HOUR
        return StepCost(round=number, step="train", rows=num_pairs, tokens_trained=tokens, gpu_hours=hours)

    @property
    def _pair_tokens(self) -> float:
        """Tokens of both dialogues of a pair, cut as scoring and training cut them."""
        return 2 * min(self._prompt + self._response, self._config.tokens.max_length)

    def _reading(self, tokens: float, params: float) -> float:
        rate = self._assumed.gpu_flops * self._assumed.scoring_mfu
        return 2.0 * params * tokens / rate / _SECONDS_PER_HOUR
