"""The train section of the config of self-play: how the next policy is made. Imports only pydantic."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config import Dtype
from pipeline.config_section import SECRET_NAME, Section, without_secrets
from pipeline.shown import listed


class Train(Section):
    """How the next policy is made from the selected pairs."""

    method: Literal["dpo", "simpo", "command"] = "simpo"
    command: tuple[str, ...] = ()
    """With method command: program and arguments, in which {dataset}, {policy} and {output} are filled in."""
    start_from: Literal["previous", "base"] = "previous"
    """The policy that is trained on: that of the round before, or that of round 0."""
    data: Literal["round", "all"] = "round"
    """Train on the pairs of this round, or on those of every round so far."""
    adapter: Literal["none", "lora"] = "none"
    """lora: train an adapter and merge it; none: train all weights."""
    rank: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    beta: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Left out: that of the objective."""
    gamma: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    """Target margin of SimPO's loss."""
    epochs: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps."""
    batch_size: int = Field(default=4, ge=1)
    """Pairs in one forward."""
    accumulate: int = Field(default=1, ge=1)
    """Forwards in one optimiser step."""
    dtype: Dtype = "bfloat16"
    precomputed_reference: bool = True
    """dpo: take the reference log-probs that were scored, and load no reference model."""
    seed: int = 42
    num_gpus: float = Field(default=0, ge=0)
    num_threads: int = Field(default=1, ge=1)
    """Torch threads on CPU."""
    policies: str | None = None
    """Folder for trained policies, which every node mounts; left out, `path`, which must then be such a folder."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of TRL's config."""

    _options = field_validator("options")(without_secrets)

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
