"""The train section of self-play: how the next policy is made."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.models import Dtype
from pipeline.config.section import LAYOUT, SECRET_NAME, Arguments, Section
from pipeline.shown import listed


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
