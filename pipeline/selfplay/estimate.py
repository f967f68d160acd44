"""What a self-play run will take, before anything is loaded: rows, tokens and GPU-hours of every step.

    reading P prompt or response tokens    2 x parameters x P FLOP, at `estimate.scoring_mfu` of `estimate.gpu_flops`
    training on P tokens                   6 x parameters x P FLOP, at `estimate.training_mfu`; 4 for a LoRA adapter, as
                                           frozen weights need no gradient; 2 more if DPO runs its reference beside
    generating P tokens                    P / `estimate.decode_tokens_per_s` seconds of one GPU

A prompt is read once for all its K responses. Assumed is that every prompt gives all the pairs that `pair` allows, and
every selected pair of a step another prompt. Loading models, storage and idle GPUs are left out. So the figures are
right within a factor of two or so, and no budget to the hour.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.config import Evolve, SelfPlayConfig, SelfPlayEstimate, Train
from pipeline.data.place import Place
from pipeline.errors import AlignpotError, ConfigError, DataError
from pipeline.faults import storage_errors
from pipeline.selection.rules import num_selected
from pipeline.selection.text import aligned
from pipeline.selfplay.evolve import template_of
from pipeline.selfplay.seeds import read_prompts

_SECONDS_PER_HOUR: Final = 3600.0
_CHARS_PER_TOKEN: Final = 4.0
_IN_ALL: Final = "in all"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """One step of one round; `rows` are prompts, requests or pairs, depending on the step."""

    round: int
    step: str
    rows: int
    tokens_generated: float = 0.0
    tokens_read: float = 0.0
    """Without a gradient: prompts before their responses are generated, dialogues that are scored."""
    tokens_trained: float = 0.0
    gpu_hours: float = 0.0


def dry_run(config: SelfPlayConfig) -> Iterator[str]:
    """The estimate as text, for the prompts that are there, or else for `estimate.num_prompts`."""
    num_prompts = None
    try:
        place = Place.of_source(config.prompts.path, config.storage)
        with storage_errors(config.prompts.path):
            num_prompts = read_prompts(place.fs, place.root, config.prompts).num_usable
    except AlignpotError as error:
        reason = str(error).splitlines()[0]
        yield f"prompts.path cannot be read, so estimate.num_prompts is taken: {reason}\n"
    yield render_estimate(estimate(config, num_prompts), config.estimate)


def estimate(config: SelfPlayConfig, num_prompts: int | None = None) -> list[StepCost]:
    """All steps of a run over so many prompts, held-out ones included, and their sums as the last item.

    In round 0 the first policy is measured. The rows of the sums are the prompts. Default: `estimate.num_prompts`.

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
    steps = list(_Estimator(config).steps(given))
    figures = ("tokens_generated", "tokens_read", "tokens_trained", "gpu_hours")
    sums: dict[str, Any] = {name: math.fsum(getattr(step, name) for step in steps) for name in figures}
    return [*steps, StepCost(round=config.rounds, step=_IN_ALL, rows=given, **sums)]


def render_estimate(steps: Sequence[StepCost], given: SelfPlayEstimate) -> str:
    """The steps as a table, with what was assumed."""
    lines: list[tuple[str, ...]] = [
        ("round  step", "rows", "tokens generated", "tokens read", "tokens trained", "GPU-hours")
    ]
    for step in steps:
        number = " " * 5 if step.step == _IN_ALL else f"{step.round:>5}"
        tokens = (step.tokens_generated, step.tokens_read, step.tokens_trained)
        figures = [f"{step.rows:,}", *(f"{round(count):,}" for count in tokens), f"{step.gpu_hours:,.2f}"]
        lines.append((f"{number}  {step.step}", *figures))
    note = (
        f"Assumed: prompts of {given.prompt_tokens:g} tokens, responses of {given.response_tokens:g}; "
        f"{given.policy_params / 1e9:g}e9 parameters of the policy, {given.reward_params / 1e9:g}e9 of the reward "
        f"model;\n{given.gpu_flops:.3g} FLOP/s of a GPU, {given.scoring_mfu:.0%} of it used in scoring and "
        f"{given.training_mfu:.0%} in training; {given.decode_tokens_per_s:g} tokens generated in a second. "
        "Set them under estimate."
    )
    return f"{aligned(lines)}\n\n{note}"


class _Estimator:
    """The costs of the steps of one config."""

    def __init__(self, config: SelfPlayConfig) -> None:
        self._config = config
        self._assumed = config.estimate
        self._prompt = min(self._assumed.prompt_tokens, config.generate.max_prompt_tokens)
        self._response = min(self._assumed.response_tokens, config.generate.max_tokens)
        # Tokens of both dialogues of a pair, cut as scoring and training cut them.
        self._pair = 2 * min(self._prompt + self._response, config.tokens.max_length)

    def steps(self, num_prompts: int) -> Iterator[StepCost]:
        """Every step of every round."""
        config, held_out = self._config, self._config.evaluate.num_prompts
        yield from self._measure(0)
        trained_on = 0
        for number in range(1, config.rounds + 1):
            selected = base = self._num_selected(num_prompts - held_out)
            yield from self._expand(number, num_prompts - held_out)
            if config.evolve is not None:
                num_strategies = len(config.evolve.strategies)
                num_strategies = min(config.evolve.per_prompt or num_strategies, num_strategies)
                num_drafts = min(base, num_prompts - held_out) * num_strategies
                yield self._evolve(number, config.evolve, num_drafts)
                kept = int(num_drafts * self._assumed.evolved_kept)
                yield from self._expand(number, kept, "evolved: ")
                selected += self._num_selected(kept)
            if config.train is not None:
                trained_on = selected + (trained_on if config.train.data == "all" else 0)
                yield self._train(number, config.train, trained_on)
                yield from self._measure(number)
                yield self._step(number, "score after training", base, read=base * self._pair)

    def _step(self, number: int, step: str, rows: int, **cost: float) -> StepCost:
        """generated, trained: tokens of the policy. read, read_by_reward: tokens that a model reads."""
        assumed = self._assumed
        generated, trained = cost.get("generated", 0.0), cost.get("trained", 0.0)
        read, judged = cost.get("read", 0.0), cost.get("read_by_reward", 0.0)
        flops_read = 2.0 * (assumed.policy_params * read + assumed.reward_params * judged)
        flops_trained = cost.get("flops", 0.0) * assumed.policy_params * trained
        seconds = generated / assumed.decode_tokens_per_s
        seconds += flops_read / (assumed.gpu_flops * assumed.scoring_mfu)
        seconds += flops_trained / (assumed.gpu_flops * assumed.training_mfu)
        return StepCost(
            round=number,
            step=step,
            rows=rows,
            tokens_generated=generated,
            tokens_read=read + judged,
            tokens_trained=trained,
            gpu_hours=seconds / _SECONDS_PER_HOUR,
        )

    def _answer(self, number: int, what: str, rows: int, k: int, response: float) -> Iterator[StepCost]:
        yield self._step(number, f"{what}generate", rows, generated=rows * k * response, read=rows * self._prompt)
        dialogues = rows * k * (self._prompt + response) * len(self._config.members)
        yield self._step(number, f"{what}annotate", rows, read_by_reward=dialogues)

    def _expand(self, number: int, num_prompts: int, what: str = "") -> Iterator[StepCost]:
        yield from self._answer(number, what, num_prompts, self._config.generate.num_responses, self._response)
        num_pairs, num_models = self._num_pairs(num_prompts), 2 if self._config.needs_reference else 1
        yield self._step(number, f"{what}score", num_pairs, read=num_models * num_pairs * self._pair)

    def _measure(self, number: int) -> Iterator[StepCost]:
        evaluate = self._config.evaluate
        most = self._config.generate.max_tokens if evaluate.max_tokens is None else evaluate.max_tokens
        response = min(self._assumed.response_tokens, most)
        yield from self._answer(number, "measure: ", evaluate.num_prompts, evaluate.num_responses, response)

    def _evolve(self, number: int, evolve: Evolve, num_drafts: int) -> StepCost:
        templates = [len(template_of(name).text) / _CHARS_PER_TOKEN for name in evolve.strategies]
        request = self._prompt + sum(templates) / len(templates)
        draft = min(self._prompt, evolve.max_tokens)
        return self._step(number, "evolve", num_drafts, generated=num_drafts * draft, read=num_drafts * request)

    def _train(self, number: int, train: Train, num_pairs: int) -> StepCost:
        seen = num_pairs * train.epochs
        if train.max_steps is not None:
            seen = min(seen, train.max_steps * train.batch_size * train.accumulate)
        flops = 4.0 if train.adapter == "lora" else 6.0
        if train.method == "dpo" and not train.precomputed_reference:
            flops += 2.0
        return self._step(number, "train", num_pairs, trained=seen * self._pair, flops=flops)

    def _num_pairs(self, num_prompts: int) -> int:
        return num_prompts * min(self._config.pair.per_prompt, self._config.generate.num_responses // 2)

    def _num_selected(self, num_prompts: int) -> int:
        rule, pairs = self._config.select, self._num_pairs(num_prompts)
        if rule.per_prompt is not None:
            pairs = min(pairs, rule.per_prompt * num_prompts)
        if rule.k is not None:
            return min(rule.k, pairs)
        try:
            return num_selected(rule, pairs)
        except DataError:  # none
            return 0
