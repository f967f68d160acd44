"""The whole file of `alignpot self-play`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.config.combine import Combine
from pipeline.config.load import load, parse, read_sections
from pipeline.config.models import Estimate, Run, TorchModel
from pipeline.config.output import Output
from pipeline.config.presets import PresetName, with_preset
from pipeline.config.rewarding import RewardConfig
from pipeline.config.rewards import ColumnsReward, ComputedReward, ComputedRewards, HasRewards
from pipeline.config.root import Config
from pipeline.config.round import Evaluate, Evolve, Generate, Pairing, Prompts, Train
from pipeline.config.section import BY_CONTENT, LAYOUT, PER_OUTPUT, Url
from pipeline.config.selection import Metric, Objective, Select
from pipeline.config.source import Storage, Tokens
from pipeline.shown import shown_path

_WEIGHT: Final = 2.5
_FRACTION: Final = 0.25
_CARRIED: Final = ("prompt_id", "parent_id", "strategy", "round")  # columns that pairs carry along


class SelfPlayEstimate(Estimate):
    """What `--dry-run` assumes for all that it cannot look up. Defaults: the authors' data, 8B models and one H100."""

    num_prompts: int = Field(default=61_135, ge=1)
    """Number of prompts, if they cannot be counted."""
    prompt_tokens: float = Field(default=200.0, gt=0)
    """Mean tokens of a prompt."""
    response_tokens: float = Field(default=350.0, gt=0)
    """Mean tokens of a response."""
    policy_params: float = Field(default=8.03e9, gt=0)
    """Parameters of the policy, if its files are missing."""
    reward_params: float = Field(default=7.5e9, gt=0)
    """Parameters of the reward model, if its files are missing."""
    evolved_kept: float = Field(default=0.8, gt=0, le=1)
    """Share of new prompts that the filters keep."""
    training_mfu: float = Field(default=0.35, gt=0, le=1)
    """Share of those FLOP/s that training reaches."""
    decode_tokens_per_s: float = Field(default=5_000.0, gt=0)
    """Tokens that one GPU generates in a second, over all sequences of a batch."""


class SelfPlayConfig(HasRewards):
    """The whole file of `alignpot self-play`. Sections that it shares with the other commands mean the same here."""

    preset: PresetName | None = Field(default=None, json_schema_extra=LAYOUT)
    """As for the other commands."""
    path: Url = Field(json_schema_extra=LAYOUT)
    """Everything between the prompts and the last policy is written below it: a folder that every node mounts, or a URL
    with `train.policies`."""
    storage: Storage = Storage()
    prompts: Prompts
    policy: TorchModel = Field(json_schema_extra=BY_CONTENT)
    """The model of round 0."""
    reference: TorchModel | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """Default: the policy of round 0, if the objective or the training needs a reference."""
    reward: ComputedReward | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """What judges responses: a reward model, without fp8, a pointwise judge, or a function."""
    rewards: ComputedRewards | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """Several rewards in place of `reward`, by name. `metric.combine` makes one of them, for pairs and for margins."""
    tokens: Tokens = Tokens()
    objective: Objective = Objective()
    metric: Metric = Metric(weight=_WEIGHT)
    """The weight is 2.5 if none is given."""
    select: Select = Field(default=Select(fraction=_FRACTION), json_schema_extra=PER_OUTPUT)
    """The fraction is 0.25 if no rule is given."""
    generate: Generate = Generate()
    pair: Pairing = Pairing()
    evolve: Evolve | None = Evolve()
    """`null` makes no new prompts."""
    train: Train | None = Field(default=Train(), json_schema_extra=PER_OUTPUT)
    """`null` stops at the subsets of round 1."""
    evaluate: Evaluate = Evaluate()
    rounds: int = Field(default=1, ge=1, json_schema_extra=LAYOUT)
    """Rounds of generate, select and train. May be raised later."""
    estimate: SelfPlayEstimate = SelfPlayEstimate()
    run: Run = Run()

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, data: Any) -> Any:
        return _with_defaults(with_preset(data)) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _sections_fit(self) -> "SelfPlayConfig":
        train = self.train
        if train is not None and train.policies is None and "://" in self.path:
            raise ValueError(
                "path is a URL, and trained models need a folder that every node mounts: set train.policies"
            )
        if self.rounds > 1 and train is None:
            raise ValueError("rounds above 1 need a train section: without training, every round would be the same")
        if self.select.stats_from is not None:
            raise ValueError("select.stats_from is not for self-play: thresholds do not hold for a policy that changes")
        if self.select.group_by not in (None, *_CARRIED):
            raise ValueError(f"select.group_by {self.select.group_by} is no column of the pairs; wanted {_CARRIED}")
        needs_beta = train is not None and train.method != "command" and train.beta is None
        if train is not None and needs_beta and not self.objective.name.startswith(train.method):
            raise ValueError(
                f"train.beta: objective {self.objective.name} has no beta for method {train.method}; give one"
            )
        self.combine  # noqa: B018 - raises if it names a reward that is not there
        # Refuse now, before anything is generated, what scoring and selection would refuse later.
        try:
            self.scoring(self.policy, scored="/scored", subset="/subset")
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(problem["msg"].removeprefix("Value error, ")) from None
        return self

    @field_validator("tokens")
    @classmethod
    def _prompts_are_turns(cls, value: Tokens) -> Tokens:
        if value.template == "none":
            raise ValueError("template: none is not for self-play, whose prompts are turns: leave it out")
        return value

    @model_validator(mode="after")
    def _rewards_suit_candidates(self) -> "SelfPlayConfig":
        if not self.members:
            raise ValueError("needs a reward section, or rewards: what judges the responses")
        self.check_each_is_rated()
        if any(isinstance(section, TorchModel) and section.fp8 for section in self.members.values()):
            raise ValueError("fp8 is not for self-play: rewards choose the pairs, and their roundings are not checked")
        return self

    def scoring(self, policy: TorchModel, *, scored: str, subset: str) -> Config:
        """The config that scores and selects pairs of this run; they come as a dataset, not from a source.

        scored, subset: URLs.

        Raises:
            ValidationError: sections do not fit each other.
        """
        reference = self.reference or self.policy if self.needs_reference else None
        return Config(
            storage=self.storage,
            policy=policy,
            reference=reference,
            **self._as_columns(),
            tokens=self.tokens,
            scored=scored,
            objective=self.objective,
            metric=self.metric,
            select=self.select,
            output=Output(path=subset),
            run=self.run,
        )

    @property
    def combine(self) -> Combine | None:
        """How one reward is made of several. Raises a ConfigError if metric.combine names others."""
        if self.reward_names == ("",):
            return None
        return (self.metric.combine or Combine()).over(self.reward_names)

    def _as_columns(self) -> dict[str, Any]:
        """The rewards as the pairs hold them."""
        if self.reward_names == ("",):
            return {"reward": ColumnsReward()}
        return {"rewards": {name: ColumnsReward() for name in self.reward_names}}

    @property
    def needs_reference(self) -> bool:
        """Whether scores are taken under a reference: the objective reads it, or the trainer does."""
        in_training = self.train is not None and self.train.method == "dpo" and self.train.precomputed_reference
        return self.objective.reads_reference or in_training

    @property
    def policies(self) -> Path:
        """The folder of trained policies."""
        given = self.train.policies if self.train is not None else None
        return Path(given or self.path).expanduser().resolve() / "policies"


def load_self_play(path: str | Path, overrides: Iterable[str] = ()) -> SelfPlayConfig:
    """`load_config` for the config of self-play."""
    return load(SelfPlayConfig, path, overrides)


def load_any(path: str | Path, overrides: Iterable[str] = ()) -> Config | SelfPlayConfig | RewardConfig:
    """`load_config` for any kind of config: that of self-play has `prompts`, that of `alignpot reward` `rewarded`."""
    sections, where = read_sections(path), shown_path(path)
    if "prompts" in sections:
        return parse(SelfPlayConfig, sections, where, overrides)
    if "rewarded" in sections:
        return parse(RewardConfig, sections, where, overrides)
    return parse(Config, sections, where, overrides)


def parse_self_play(data: Mapping[str, Any], *, where: str = "config") -> SelfPlayConfig:
    """`parse_config` for the config of self-play."""
    return parse(SelfPlayConfig, data, where)


def _with_defaults(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with self-play's own weight and fraction in sections that leave them out."""
    merged = dict(data)
    metric, select = data.get("metric"), data.get("select")
    if isinstance(metric, Mapping):
        merged["metric"] = {"weight": _WEIGHT, **metric}
    if isinstance(select, Mapping) and not {"fraction", "k", "min_score", "max_score", "stats_from"} & set(select):
        merged["select"] = {"fraction": _FRACTION, **select}
    return merged
