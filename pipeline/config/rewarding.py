"""The whole file of `alignpot reward`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from pipeline.config.load import load, parse
from pipeline.config.models import Run, TorchModel
from pipeline.config.rewards import ComputedReward, ComputedRewards, HasRewards
from pipeline.config.section import BY_CONTENT, LAYOUT, Url
from pipeline.config.source import Source, Storage, Tokens


class RewardConfig(HasRewards):
    """The whole file of `alignpot reward`: prompts with one response or several in, the same with rewards out. Sections
    that it shares with the other commands mean the same here.

    A row holds its prompt as rows of pairs do, and beside it a list of responses (`responses`, `completions`,
    `generations`, `all_generated_responses`, ...), one response (`completion`, `response`, `answer`, `output`,
    `generation`), or `messages` that end with one.
    """

    source: Source
    """Where the responses are. `source.format` and `source.pairs` are for pairs."""
    storage: Storage = Storage()
    reward: ComputedReward | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """What judges responses: a reward model, without fp8, a pointwise judge, or a function."""
    rewards: ComputedRewards | None = Field(default=None, json_schema_extra=BY_CONTENT)
    """Several rewards in place of `reward`, by name: each gives lists of its own, `all_rm_scores_NAME`."""
    tokens: Tokens = Tokens()
    """`template` and `date` alone are read: a reward model has a template and a length of its own."""
    rewarded: Url = Field(json_schema_extra=LAYOUT)
    """Folder or URL of what comes out: every row once, with `all_generated_responses` and `all_rm_scores`, lists of the
    same length. As a source, it has the format `candidates`."""
    run: Run = Run()

    @field_validator("source")
    @classmethod
    def _reads_no_pairs(cls, value: Source) -> Source:
        if value.format != "auto" or value.pairs != "best-worst":
            raise ValueError("format and pairs are for pairs, and rewards are given to responses: leave them out")
        return value

    @model_validator(mode="after")
    def _rewards_suit_responses(self) -> "RewardConfig":
        if not self.members:
            raise ValueError("needs a reward section, or rewards: what judges the responses")
        self.check_each_is_rated()
        if any(isinstance(section, TorchModel) and section.fp8 for section in self.members.values()):
            raise ValueError("fp8 is for score, which checks its roundings: leave it out")
        return self


def load_reward(path: str | Path, overrides: Iterable[str] = ()) -> RewardConfig:
    """`load_config` for the config of rewards."""
    return load(RewardConfig, path, overrides)


def parse_reward(data: Mapping[str, Any], *, where: str = "config") -> RewardConfig:
    """`parse_config` for the config of rewards."""
    return parse(RewardConfig, data, where)
