"""The sections of a round of self-play: prompts, generate, pair, evolve, evaluate and train."""

from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.models import Dtype, EngineArguments, Replicas, decisive_arguments
from pipeline.config.section import BY_CONTENT, LAYOUT, SECRET_NAME, Arguments, Section, Url
from pipeline.shown import listed

Strategy = Literal["constraints", "deepen", "concretise", "reasoning", "breadth"]
STRATEGIES: Final[tuple[Strategy, ...]] = ("constraints", "deepen", "concretise", "reasoning", "breadth")
SEED_STRATEGY: Final = "seed"
"""Value of the column `strategy` for prompts that were given, not made."""


class Prompts(Section):
    """The prompts that self-play starts from, and those held out to measure it on."""

    path: Url = Field(json_schema_extra=BY_CONTENT)
    """File, folder or URL of prompts, or of pairs whose prompts are read; the Hub and tables as in source.path."""
    config: str | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """As source.config."""
    split: str | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """As source.split."""
    format: str = "auto"
    """As source.format, or `prompts`: a column of prompts alone."""
    id_column: str | None = None
    """Column with a unique id. Default: the id is a hash of the prompt."""
    limit: int | None = Field(default=None, ge=1)
    """Use this many prompts, held-out ones included, picked by a seeded hash of the id. Default: all."""
    seed: int = 0
    """Seed of that hash, and of the choice of held-out prompts."""
    decontaminate: tuple[str, ...] = Field(default=(), json_schema_extra=BY_CONTENT)
    """Files of benchmark prompts. A prompt, given or made, that shares `ngram` words in a row with one is dropped."""
    ngram: int = Field(default=13, ge=2)
    """Words in a row that count as contamination."""


class Generate(Replicas):
    """How the policy answers: the engine, the number of responses, and the sampling."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """What generates; `transformers` needs no vLLM and is slower."""
    num_responses: int = Field(default=5, ge=2)
    """K, the responses to one prompt."""
    temperature: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    """Sampling temperature; 0 takes the most likely token."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability."""
    max_tokens: int = Field(default=4096, ge=1)
    """Most tokens of one response."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Most tokens of a prompt. Longer prompts are dropped, never cut."""
    system_prompt: str | None = None
    """System turn for prompts that have none. Default: as the model's template has it."""
    seed: int = 42
    """With a prompt's id it gives the seed of each of its responses."""
    dtype: Literal["auto"] | Dtype = "auto"
    """Dtype of the policy while it generates. `auto`: that of the policy, or float32 on a CPU without bfloat16
    arithmetic."""
    shard_prompts: int = Field(default=256, ge=1, json_schema_extra=LAYOUT)
    """Prompts of one shard, which is generated and stored as a whole."""
    engine_args: EngineArguments = Field(default_factory=dict)
    """Further arguments of vLLM's engine, such as `tensor_parallel_size`. In the fingerprint except those that lay out
    the work, as for `policy.engine_args`."""

    def fingerprint(self) -> dict[str, Any]:
        """With those arguments of vLLM that are decisive."""
        return super().fingerprint() | {"engine_args": decisive_arguments(self.engine_args)}


class Pairing(Section):
    """Which two of the K responses make a pair."""

    rule: Literal["best-worst", "sweet-spot", "random"] = "best-worst"
    """`best-worst`: the highest and the lowest reward. `sweet-spot`: the worse one is nearest to two standard
    deviations below the mean. `random`: any two, the better one first."""
    per_prompt: int = Field(default=1, ge=1)
    """Most pairs of one prompt."""
    min_margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Smallest reward margin of a pair. Ties are always dropped."""
    max_margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Largest reward margin of a pair. Default: no limit."""
    min_tokens: int = Field(default=1, ge=1)
    """Shorter responses take part in no pair."""
    finished_only: bool = False
    """Leave out responses that were cut at generate.max_tokens."""
    max_length_ratio: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """Largest ratio of the lengths, in tokens, of the two responses. Default: no limit."""
    seed: int = 0
    """Seed of rule `random`."""


class Evolve(Section):
    """How the prompts of selected pairs are rewritten into new prompts, and which of those are kept."""

    strategies: tuple[Strategy, ...] = Field(default=STRATEGIES, min_length=1)
    """Ways to rewrite a prompt: add constraints, deepen it, make it concrete, ask for reasoning, or ask something else
    of the same field (breadth)."""
    per_prompt: int | None = Field(default=None, ge=1)
    """Strategies used on one prompt, picked by a seeded hash. Default: all of them."""
    temperature: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    """Sampling temperature of new prompts."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """As generate.top_p."""
    max_tokens: int = Field(default=1024, ge=1)
    """Most tokens of a new prompt."""
    max_length_ratio: float = Field(default=5.0, gt=1, allow_inf_nan=False)
    """Largest ratio of the lengths, in characters, of a new prompt and its parent, either way."""
    similarity: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word 3-grams from which a new prompt counts as a repeat of its parent or of any other
    prompt."""
    seed: int = 42
    """Seed of the strategies and of the sampling."""


class Evaluate(Section):
    """How every policy is measured: its mean reward on prompts that are never trained on."""

    num_prompts: int = Field(default=64, ge=2)
    """Held-out prompts, picked by a seeded hash of the id."""
    num_responses: int = Field(default=1, ge=1)
    """Responses to each of them."""
    temperature: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    """Sampling temperature."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a response. Default: generate.max_tokens."""
    seed: int = 7
    """Seed of the responses."""


class Train(Section):
    """How the next policy is made from the selected pairs. Another value of a key in the fingerprint is another
    training: it runs beside the earlier one, and what was generated stays.
    """

    method: Literal["dpo", "simpo", "command"] = "simpo"
    """`dpo` and `simpo` run TRL on one GPU or the CPU; `command` runs a program of yours. With tokens.preset `trl`, TRL
    trains on exactly the tokens that were scored."""
    command: tuple[str, ...] = ()
    """For method `command`: program and arguments. `{dataset}`, `{policy}` and `{output}` in them are filled in."""
    start_from: Literal["previous", "base"] = "previous"
    """The policy that is trained further: that of the round before, or that of round 0."""
    data: Literal["round", "all"] = "round"
    """Train on the pairs of this round, or on those of every round so far."""
    adapter: Literal["none", "lora"] = "none"
    """`lora` trains an adapter and merges it; `none` trains all weights."""
    rank: int = Field(default=16, ge=1)
    """Rank of the LoRA adapter."""
    learning_rate: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    """Largest learning rate, as TRL's `learning_rate`."""
    beta: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """beta of the loss. Default: that of the objective."""
    gamma: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    """Target margin of SimPO's loss."""
    epochs: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Passes over the pairs."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps. Default: no limit."""
    batch_size: int = Field(default=4, ge=1)
    """Pairs in one forward."""
    accumulate: int = Field(default=1, ge=1)
    """Forwards in one optimiser step."""
    dtype: Dtype = "bfloat16"
    """Dtype of the arithmetic."""
    precomputed_reference: bool = True
    """For method `dpo`: take the reference log-probs that were scored, and load no reference model."""
    seed: int = 42
    """Seed of the training, such as of the order of pairs."""
    num_gpus: float = Field(default=0, ge=0, json_schema_extra=LAYOUT)
    """GPUs that the training reserves; 0 trains on the CPU."""
    num_threads: int = Field(default=1, ge=1, json_schema_extra=LAYOUT)
    """Torch threads on a CPU."""
    policies: str | None = Field(default=None, json_schema_extra=LAYOUT)
    """Folder for trained policies, which every node mounts. Default: the folder `path`, which must then not be a
    URL."""
    options: Arguments = Field(default_factory=dict)
    """Further arguments of TRL's config."""

    @field_validator("policies")
    @classmethod
    def _a_folder(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError("must be a folder that every node mounts, not a URL")
        return value

    @model_validator(mode="after")
    def _command_given(self) -> "Train":
        if (self.method == "command") != bool(self.command):
            raise ValueError("method command and a command go together: give both, or neither")
        secret = [i for i, word in enumerate(self.command, start=1) if SECRET_NAME.search(word.partition("=")[0])]
        if secret:
            raise ValueError(f"command must not carry credentials (word {listed(secret)}); use environment variables")
        missing = [p for p in ("{dataset}", "{output}") if not any(p in word for word in self.command)]
        if self.command and missing:
            raise ValueError(f"command lacks {' and '.join(missing)}")
        return self
