"""What is wrong with a training and can be known before there is anything to train on. Loads no weights."""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator

from pipeline.config import TorchModel, Train
from pipeline.errors import ConfigError
from pipeline.training.job import TrainJob


def check_training(job: TrainJob) -> None:
    """See that a job could start, whatever its datasets and its output will be.

    Importing TRL takes some seconds; the environment stays as it is, and no GPU is touched.

    Raises:
        ConfigError: more GPUs than a trainer uses, no beta, a key in train.options that TRL does not know or that the
            job decides, no program of that name, or a policy that a command cannot be told.
        ModelError: TRL is missing, or is one that cannot be used.
    """
    if job.settings.method == "command":
        check_policy_has_a_name(job.policy)
        _check_program(job.settings.command[0])
        return
    check_num_gpus(job.settings)
    with _nothing_noticed():
        from pipeline.training.precomputed import checked_dpo_trainer
        from pipeline.training.trl_options import check_keys

        check_keys(job)
        if job.settings.method == "dpo" and job.settings.precomputed_reference and job.tokens.preset == "trl":
            checked_dpo_trainer()


def check_num_gpus(settings: Train) -> None:
    """See that one GPU is enough, where a trainer of ours is to train.

    Raises:
        ConfigError: more are asked for.
    """
    if settings.method != "command" and settings.num_gpus > 1:
        raise ConfigError(
            f"train.num_gpus is {settings.num_gpus:g}; methods dpo and simpo train on one GPU. Use method command "
            "with a launcher such as accelerate."
        )


def check_policy_has_a_name(policy: TorchModel) -> None:
    """See that a name alone says which model is meant, as a command is told no more.

    Raises:
        ConfigError: it has an adapter or a revision.
    """
    if policy.adapter is not None or policy.revision != "main":
        raise ConfigError(
            "train.command is told the policy by a name alone, which leaves out policy.adapter and policy.revision. "
            "Give a local directory with the adapter merged."
        )


def _check_program(name: str) -> None:
    """A program with a path, or with a placeholder in its name, is looked for when it is started."""
    if os.sep in name or "{" in name or shutil.which(name) is not None:
        return
    raise ConfigError(f"train.command: there is no program {name} on PATH. Install it, or give its path.")


@contextlib.contextmanager
def _nothing_noticed() -> Iterator[None]:
    """TRL and what it imports warn, and set variables that processes started later would get."""
    before = dict(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
