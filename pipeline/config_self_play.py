"""The config of `alignpot self-play`: one YAML file for all rounds, typed and strict.

Sections that scoring and selection share are those of `pipeline.config`; what a round reads and writes in between is
derived from `path`, so that nothing can be named wrongly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.config import (
    ClassifierReward,
    ColumnsReward,
    Config,
    Dtype,
    Metric,
    Objective,
    Output,
    Replicas,
    Run,
    Select,
    Storage,
    Tokens,
    TorchModel,
)
from pipeline.config_objective import OBJECTIVES_WITH_REFERENCE
from pipeline.config_preset import PresetName, with_preset
from pipeline.config_section import Section, checked_url, without_secrets
from pipeline.config_training import Train as Train  # noqa: PLC0414

Strategy = Literal["constraints", "deepen", "concretise", "reasoning", "breadth"]
STRATEGIES: Final[tuple[Strategy, ...]] = ("constraints", "deepen", "concretise", "reasoning", "breadth")
SEED_STRATEGY: Final = "seed"
"""What stands in the column `strategy` of prompts that were given, not made."""

_WEIGHT: Final = 2.5
_FRACTION: Final = 0.25

_GROUPS: Final = ("prompt_id", "parent_id", "strategy", "round")
"""Columns that pairs carry along."""

PairRule = Literal["best-worst", "sweet-spot", "random"]


class Prompts(Section):
    """The prompts that self-play starts from, and those held out to measure it on."""

    path: str
    format: str = "auto"
    """As source.format, whose prompts are read, or `prompts`: a column of prompts alone."""
    id_column: str | None = None
    limit: int | None = Field(default=None, ge=1)
    """Use this many prompts, held-out ones included, picked by a seeded hash of the id."""
    seed: int = 0
    decontaminate: tuple[str, ...] = ()
    """Files of benchmark prompts: a prompt, given or made, that shares an n-gram with one of them is dropped."""
    ngram: int = Field(default=13, ge=2)

    _path = field_validator("path")(checked_url)


class Generate(Replicas):
    """How the policy answers: the engine, K, and the sampling."""

    engine: Literal["vllm", "transformers"] = "vllm"
    num_responses: int = Field(default=5, ge=2)
    """K, the responses to one prompt."""
    temperature: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=4096, ge=1)
    """Most tokens of one response."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Longer prompts are dropped, never cut."""
    system_prompt: str | None = None
    """Put before prompts that have none, by the model's own template."""
    seed: int = 42
    """With a prompt's id it gives the seed of each of its responses."""
    dtype: Literal["auto"] | Dtype = "auto"
    """auto: that of the policy; float32 on a CPU that has no bfloat16 arithmetic."""
    shard_prompts: int = Field(default=256, ge=1)
    """Prompts in one shard, which is generated and committed as a whole."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's engine, such as tensor_parallel_size."""

    _engine_args = field_validator("engine_args")(without_secrets)

    @model_validator(mode="after")
    def _whole_shards(self) -> "Generate":
        sizes = [self.engine_args.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")]
        if not all(isinstance(size, int) and size >= 1 for size in sizes):
            raise ValueError("engine_args: tensor_parallel_size and pipeline_parallel_size are whole numbers from 1 on")
        return self


class Pairing(Section):
    """Which two of the K responses make a pair."""

    rule: PairRule = "best-worst"
    """best-worst; sweet-spot: the worse one nearest to two deviations below the mean; random: any two, better first."""
    per_prompt: int = Field(default=1, ge=1)
    """Most pairs of one prompt."""
    min_margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Smallest reward margin of a pair; ties are dropped whatever it is."""
    max_margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    min_tokens: int = Field(default=1, ge=1)
    """Shorter responses take part in no pair."""
    finished_only: bool = False
    """Leave out responses that were cut at generate.max_tokens."""
    max_length_ratio: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """Most times one response of a pair may be as long as the other, in tokens."""
    seed: int = 0


class Evolve(Section):
    """How the prompts of selected pairs are made into new ones, and which of those are kept."""

    strategies: tuple[Strategy, ...] = Field(default=STRATEGIES, min_length=1)
    per_prompt: int | None = Field(default=None, ge=1)
    """Strategies used on one prompt, picked by a seeded hash; left out, all of them."""
    temperature: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_tokens: int = Field(default=1024, ge=1)
    max_length_ratio: float = Field(default=5.0, gt=1, allow_inf_nan=False)
    """Most times a prompt may be as long, or as short, in characters as the one it was made from."""
    similarity: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word 3-grams from which on a prompt repeats its parent or another one."""
    seed: int = 42


class Evaluate(Section):
    """How every policy is measured: its reward on prompts that nothing is trained on."""

    num_prompts: int = Field(default=64, ge=2)
    """Held-out prompts, picked by a seeded hash of the id."""
    num_responses: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    max_tokens: int | None = Field(default=None, ge=1)
    """Left out: generate.max_tokens."""
    seed: int = 7


class Estimate(Section):
    """What `--dry-run` assumes where it cannot look: the authors' data, 8B models, one H100 or H200."""

    num_prompts: int = Field(default=61_135, ge=1)
    prompt_tokens: float = Field(default=200.0, gt=0)
    response_tokens: float = Field(default=350.0, gt=0)
    policy_params: float = Field(default=8.03e9, gt=0)
    reward_params: float = Field(default=7.5e9, gt=0)
    evolved_kept: float = Field(default=0.8, gt=0, le=1)
    """Share of evolved prompts that the filters keep."""
    gpu_flops: float = Field(default=9.9e14, gt=0)
    """Dense bfloat16 FLOP/s of one GPU."""
    scoring_mfu: float = Field(default=0.5, gt=0, le=1)
    training_mfu: float = Field(default=0.35, gt=0, le=1)
    decode_tokens_per_s: float = Field(default=5_000.0, gt=0)
    """Tokens that one GPU generates in a second, over all sequences of a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """URLs of scores and of the subset that is selected."""

    scored: str
    subset: str


class SelfPlayConfig(Section):
    """The whole file."""

    preset: PresetName | None = None
    path: str
    """Everything that the rounds read and write between the prompts and the last policy lies below."""
    storage: Storage = Storage()
    prompts: Prompts
    policy: TorchModel
    reference: TorchModel | None = None
    """Left out: the policy of round 0, where the objective needs a reference."""
    reward: ClassifierReward
    tokens: Tokens = Tokens()
    objective: Objective = Objective()
    metric: Metric = Metric(weight=_WEIGHT)
    select: Select = Select(fraction=_FRACTION)
    generate: Generate = Generate()
    pair: Pairing = Pairing()
    evolve: Evolve | None = Evolve()
    train: Train | None = Train()
    evaluate: Evaluate = Evaluate()
    rounds: int = Field(default=1, ge=1)
    estimate: Estimate = Estimate()
    run: Run = Run()

    _path = field_validator("path")(checked_url)

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, data: Any) -> Any:
        return _with_defaults(with_preset(data)) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _policies_have_a_place(self) -> "SelfPlayConfig":
        if self.train is not None and self.train.policies is None and "://" in self.path:
            raise ValueError(
                "train.policies: trained models need a folder that every node mounts, which a URL is not: give one"
            )
        if self.rounds > 1 and self.train is None:
            raise ValueError("rounds above 1 need a train section: without training, every round would be the same")
        if self.select.stats_from is not None:
            raise ValueError("select.stats_from: thresholds of another run do not hold for a policy that changes")
        if self.select.group_by not in (None, *_GROUPS):
            raise ValueError(f"select.group_by {self.select.group_by} is no column of the pairs; wanted {_GROUPS}")
        return self

    @field_validator("reward")
    @classmethod
    def _rewards_are_not_rounded(cls, value: ClassifierReward) -> ClassifierReward:
        if value.fp8:
            raise ValueError("fp8 is not for self-play, whose rewards choose the pairs before anything is ranked")
        return value

    @model_validator(mode="after")
    def _training_has_its_beta(self) -> "SelfPlayConfig":
        train = self.train
        if train is None or train.method == "command" or train.beta is not None:
            return self
        if not self.objective.name.startswith(train.method):
            raise ValueError(
                f"train.beta: objective {self.objective.name} has no beta for a training by {train.method}; give one"
            )
        return self

    @model_validator(mode="after")
    def _pairs_can_be_scored(self) -> "SelfPlayConfig":
        """What scoring and selection would refuse is refused here, before anything is generated."""
        try:
            self.scoring(self.policy, Places(scored="/scored", subset="/subset"))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(problem["msg"].removeprefix("Value error, ")) from None
        return self

    def scoring(self, policy: TorchModel, places: "Places") -> Config:
        """The config that scores and selects pairs of this run, which come as a dataset, not from a source.

        Raises:
            ValidationError: sections do not fit each other.
        """
        reference = self.reference or self.policy if self.needs_reference else None
        return Config(
            storage=self.storage,
            policy=policy,
            reference=reference,
            reward=ColumnsReward(),
            tokens=self.tokens,
            scored=places.scored,
            objective=self.objective,
            metric=self.metric,
            select=self.select,
            output=Output(path=places.subset),
            run=self.run,
        )

    @property
    def needs_reference(self) -> bool:
        """Whether scores are taken under a reference: the objective reads it, or the trainer does."""
        in_training = self.train is not None and self.train.method == "dpo" and self.train.precomputed_reference
        return self.objective.name in OBJECTIVES_WITH_REFERENCE or in_training

    @property
    def policies(self) -> Path:
        """The folder of trained policies."""
        given = self.train.policies if self.train is not None else None
        return Path(given or self.path).expanduser().resolve() / "policies"


def _with_defaults(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with self-play's own weight and share where sections are given that leave them out."""
    merged = dict(data)
    metric, select = data.get("metric"), data.get("select")
    if isinstance(metric, Mapping):
        merged["metric"] = {"weight": _WEIGHT, **metric}
    if isinstance(select, Mapping) and not {"fraction", "k", "min_score", "max_score", "stats_from"} & set(select):
        merged["select"] = {"fraction": _FRACTION, **select}
    return merged
