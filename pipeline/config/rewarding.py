"""The whole file of `alignpot reward`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from pipeline.config.load import load, parse
from pipeline.config.models import Run, TorchModel
from pipeline.config.rewards import ComputedReward
from pipeline.config.section import BY_CONTENT, LAYOUT, Section, Url
from pipeline.config.source import Source, Storage, Tokens


class RewardConfig(Section):
    """The whole file of `alignpot reward`: prompts with one response or several in, the same with rewards out. Sections
    that it shares with the other commands mean the same here.

    A row holds its prompt as rows of pairs do, and beside it a list of responses (`responses`, `completions`,
    `generations`, `all_generated_responses`, ...), one response (`completion`, `response`, `answer`, `output`,
    `generation`), or `messages` that end with one.
    """

    source: Source
    """Where the responses are. `source.format` and `source.pairs` are for pairs."""
    storage: Storage = Storage()
    reward: ComputedReward = Field(json_schema_extra=BY_CONTENT)
    """What judges responses: a reward model, without fp8, or a function."""
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

    @field_validator("reward")
    @classmethod
    def _rewards_are_not_rounded(cls, value: ComputedReward) -> ComputedReward:
        if isinstance(value, TorchModel) and value.fp8:
            raise ValueError("fp8 is for score, which checks its roundings: leave it out")
        return value


def load_reward(path: str | Path, overrides: Iterable[str] = ()) -> RewardConfig:
    """`load_config` for the config of rewards."""
    return load(RewardConfig, path, overrides)


def parse_reward(data: Mapping[str, Any], *, where: str = "config") -> RewardConfig:
    """`parse_config` for the config of rewards."""
    return parse(RewardConfig, data, where)
