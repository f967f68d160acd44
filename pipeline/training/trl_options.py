"""The arguments of TRL's configs: those that a job decides, and those that a user may add."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any, Final

from pipeline.errors import ConfigError, ModelError
from pipeline.training.job import TrainJob

_FIRST_DEFAULTS: Final = frozenset({"gradient_checkpointing"})
"""Arguments that a job sets and train.options may set otherwise."""
_NEVER: Final = frozenset({"model_init_kwargs", "trust_remote_code", "hub_token", "resume_from_checkpoint"})


def trl_config(job: TrainJob, scratch: Path, *, precomputed: bool) -> Any:
    """The DPOConfig or CPOConfig of a job, which writes nothing but below `scratch`.

    Raises:
        ConfigError: train.options has a key that TRL does not know or that the job decides, or a value it refuses.
        ModelError: TRL is missing.
    """
    kind = check_keys(job)
    decided = {**_common(job, scratch), **_of_method(job, precomputed=precomputed)}
    options = job.settings.options
    try:
        return kind(**{**decided, **options})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.options do not fit TRL's {kind.__name__}: {error}") from None


def check_keys(job: TrainJob) -> Any:
    """TRL's config of a job's method, once the keys of train.options are seen to be its own.

    Raises:
        ConfigError: train.options has a key that TRL does not know or that the job decides, or there is no beta.
        ModelError: TRL is missing.
    """
    decided = {*_common(job, Path()), *_of_method(job, precomputed=False)}
    kind = config_class(job)
    check_options(job.settings.options, kind, decided - _FIRST_DEFAULTS)
    return kind


def config_class(job: TrainJob) -> Any:
    """TRL's config of the method.

    Raises:
        ModelError: TRL is missing.
    """
    try:
        if job.settings.method == "dpo":
            from trl import DPOConfig

            return DPOConfig
        from trl.experimental.cpo import CPOConfig
    except ImportError as error:
        raise ModelError(
            f"train.method {job.settings.method} needs TRL ({error.name} cannot be imported). "
            "Run: pip install 'alignpot[trainers]', or use method command."
        ) from None
    return CPOConfig


def check_options(options: dict[str, Any], kind: Any, decided: set[str]) -> None:
    """Refuse keys that are not TRL's, and those that other settings decide.

    Raises:
        ConfigError: naming the key, and the nearest one that there is.
    """
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"train.options.{key} is no argument of TRL's {kind.__name__}.{hint}")
        if key in decided | _NEVER:
            raise ConfigError(f"train.options.{key} is decided by other settings of train and tokens; leave it out.")


def computes_in(job: TrainJob) -> str:
    """The dtype of a training's arithmetic: that of the settings, or float32 on a CPU that cannot compute in it."""
    import torch

    from pipeline.models.cpu import has_arithmetic

    wanted = job.settings.dtype
    if job.on_cpu and (wanted == "float16" or not has_arithmetic(getattr(torch, wanted))):
        return "float32"
    return wanted


def _common(job: TrainJob, scratch: Path) -> dict[str, Any]:
    settings, dtype = job.settings, computes_in(job)
    return {
        "output_dir": str(scratch / "trl"),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "beta": job.beta,
        "max_length": job.tokens.max_length,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "use_cpu": job.on_cpu,
        "gradient_checkpointing": not job.on_cpu,
        "dataloader_pin_memory": not job.on_cpu,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
        "push_to_hub": False,
        "save_strategy": "no",
        "eval_strategy": "no",
    }


def _of_method(job: TrainJob, *, precomputed: bool) -> dict[str, Any]:
    if job.settings.method == "dpo":
        cut = {} if job.tokens.truncation == "keep_start" else {"truncation_mode": job.tokens.truncation}
        return {"precompute_ref_log_probs": precomputed, **cut}
    return {
        "loss_type": "simpo",
        "cpo_alpha": 0.0,
        "simpo_gamma": job.settings.gamma,
        "remove_unused_columns": False,
    }
