"""The whole file of `alignpot prompts`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pipeline.config.load import load, parse
from pipeline.config.section import BY_CONTENT, LAYOUT, Section, Url
from pipeline.config.selection import Quantile
from pipeline.config.source import Storage


class PromptBand(Section):
    """Which prompts are kept, by the rewards of all their responses. Give `pass_rate`, `variance` or both."""

    reward: str | None = None
    """Which one of several rewards, by name. Default: the only one."""
    pass_above: float | None = Field(default=None, allow_inf_nan=False)
    """A response passes if its reward is above this."""
    pass_rate: tuple[Quantile, Quantile] | None = None
    """Lowest and highest share of the responses that pass, both included. `[0.1, 0.9]` keeps prompts that are neither
    always solved nor never. Needs `pass_above`."""
    variance: tuple[Quantile, Quantile] | None = None
    """Quantiles of the variance of the rewards, both included: `[0.2, 1.0]` leaves out the fifth of the prompts whose
    responses differ least."""
    min_responses: int = Field(default=2, ge=1)
    """Fewest responses with a reward."""

    @model_validator(mode="after")
    def _says_something(self) -> "PromptBand":
        if self.pass_rate is None and self.variance is None:
            raise ValueError("needs pass_rate or variance, such as pass_rate: [0.1, 0.9]")
        if self.pass_rate is not None and self.pass_above is None:
            raise ValueError("pass_rate needs pass_above, the reward above which a response passes")
        for name in ("pass_rate", "variance"):
            band = getattr(self, name)
            if band is not None and band[0] > band[1]:
                raise ValueError(f"{name} takes a lower and a higher number, such as [0.1, 0.9]")
        return self


class PromptsConfig(Section):
    """The whole file of `alignpot prompts`: candidates with rewards in, prompts for a trainer that samples by itself,
    such as GRPO, out.
    """

    candidates: Url = Field(json_schema_extra=BY_CONTENT)
    """Folder or URL of prompts with several responses and their rewards: what `alignpot reward` wrote, the folder
    `annotated` of a round of self-play, or scored rows with `rewards_all`. Of rows of one prompt the first one
    counts."""
    storage: Storage = Storage()
    prompts: PromptBand
    output: Url = Field(json_schema_extra=LAYOUT)
    """Folder or URL of the prompts: `prompt`, the figures that they were chosen by, and the further columns of their
    rows, as a Hugging Face dataset and as Parquet."""


def load_prompts(path: str | Path, overrides: Iterable[str] = ()) -> PromptsConfig:
    """`load_config` for the config of prompts."""
    return load(PromptsConfig, path, overrides)


def parse_prompts(data: Mapping[str, Any], *, where: str = "config") -> PromptsConfig:
    """`parse_config` for the config of prompts."""
    return parse(PromptsConfig, data, where)
