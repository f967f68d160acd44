"""What one training does, as a value that travels to another process as JSON. Loads no trainer and no torch."""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, ValidationError

from pipeline.config import Objective, Storage, Tokens, TorchModel, Train
from pipeline.config.problems import problems
from pipeline.config.section import Section
from pipeline.errors import ConfigError
from pipeline.metrics import OBJECTIVES


class TrainJob(Section):
    """One training."""

    datasets: tuple[str, ...]
    """`save_to_disk` folders or URLs of them, such as the folder hf of a subset. A pair that is in several of them is
    trained on once, as it stands in the first."""
    policy: TorchModel
    """The model to train; its dtype is that of the saved weights."""
    reference: TorchModel | None = None
    """The reference model, if one is to be run. Default: the policy as it is before training."""
    output: Path
    """Folder of the trained model, with weights, tokenizer and `training.json`."""
    settings: Train
    objective: Objective = Field(default_factory=Objective)
    """Gives beta if the settings do not."""
    tokens: Tokens = Field(default_factory=Tokens)
    """What the pairs were scored with. Training tokenises by TRL's rule, whatever the preset."""
    storage: Storage = Field(default_factory=Storage)
    merge: bool = True
    """Whether a LoRA adapter is merged into the model at the end; otherwise it is saved alone."""

    @classmethod
    def from_json(cls, text: str) -> "TrainJob":
        """The job of a text that `model_dump_json` gave, or that a person wrote.

        Raises:
            ConfigError: it is no JSON, lacks a key, or has one that is unknown or does not fit.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(f"The training job cannot be read: {'; '.join(problems(error, cls))}.") from None

    @property
    def beta(self) -> float:
        """That of the settings, or else of the objective; ConfigError if neither has one."""
        beta = self.settings.beta if self.settings.beta is not None else self.objective.beta
        if beta is None:
            usual = OBJECTIVES["simpo" if self.settings.method == "simpo" else "dpo"].defaults["beta"]
            raise ConfigError(
                f"Objective {self.objective.name} has no beta, and training needs one: set train.beta, such as {usual}."
            )
        return beta

    @property
    def on_cpu(self) -> bool:
        """Whether no GPU is asked for."""
        return self.settings.num_gpus == 0

    def check_num_gpus(self) -> None:
        """Raise ConfigError if a trainer of TRL is to use more than one GPU."""
        if self.settings.method != "command" and self.settings.num_gpus > 1:
            raise ConfigError(
                f"train.num_gpus is {self.settings.num_gpus:g}; methods dpo and simpo train on one GPU. Use method "
                "command with a launcher such as accelerate."
            )

    def check_policy_has_a_name(self) -> None:
        """Raise ConfigError if a name alone does not say which policy is meant: a command is told no more."""
        if self.policy.adapter is not None or self.policy.revision != "main":
            raise ConfigError(
                "train.command is told the policy by a name alone, which leaves out policy.adapter and "
                "policy.revision. Give a local directory with the adapter merged."
            )


def check_training(job: TrainJob) -> None:
    """See that a job could start, before there is anything to train on. Loads no weights and touches no GPU.

    Importing TRL takes some seconds. The environment stays as it is.

    Raises:
        ConfigError: more GPUs than a trainer uses, no beta, a key in train.options that TRL does not know or that the
            job decides, no such program, or a policy that a command cannot be told.
        ModelError: TRL is missing, or its version cannot be used.
    """
    settings = job.settings
    if settings.method == "command":
        job.check_policy_has_a_name()
        program = settings.command[0]
        # A program with a path, or with a placeholder in its name, is looked for when it is started.
        if os.sep not in program and "{" not in program and shutil.which(program) is None:
            raise ConfigError(f"train.command: there is no program {program} on PATH. Install it, or give its path.")
        return
    job.check_num_gpus()
    with _without_traces():
        from pipeline.training.precomputed import checked_dpo_trainer
        from pipeline.training.trl_options import options_class

        options_class(job)
        if settings.method == "dpo" and settings.precomputed_reference and job.tokens.preset == "trl":
            checked_dpo_trainer()


@contextlib.contextmanager
def _without_traces() -> Iterator[None]:
    """Undo what importing TRL does: it warns, and sets variables that processes started later would inherit."""
    before = dict(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
