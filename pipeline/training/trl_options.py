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
    """The DPOConfig or CPOConfig of a job, which writes only below `scratch`. Raises as `options_class` does."""
    kind = options_class(job)
    try:
        return kind(**{**_decided(job, scratch, precomputed=precomputed), **job.settings.options})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.options do not fit TRL's {kind.__name__}: {error}") from None


def options_class(job: TrainJob) -> Any:
    """TRL's config class of a job's method, after the keys of train.options are seen to be its own.

    Raises:
        ConfigError: train.options has a key that TRL does not know or that the job decides, or there is no beta.
        ModelError: TRL is missing.
    """
    decided = {*_decided(job, Path(), precomputed=False)} - _FIRST_DEFAULTS
    try:
        if job.settings.method == "dpo":
            import trl as library
        else:
            import trl.experimental.cpo as library
    except ImportError as error:
        raise ModelError(
            f"train.method {job.settings.method} needs TRL ({error.name} cannot be imported). "
            "Run: pip install 'alignpot[trainers]', or use method command."
        ) from None
    kind: Any = library.DPOConfig if job.settings.method == "dpo" else library.CPOConfig
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    for key in job.settings.options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"train.options.{key} is no argument of TRL's {kind.__name__}.{hint}")
        if key in decided | _NEVER:
            raise ConfigError(f"train.options.{key} is decided by other settings of train and tokens; leave it out.")
    return kind


def computes_in(job: TrainJob) -> str:
    """The dtype of a training's arithmetic: that of the settings, or float32 on a CPU that cannot compute in it."""
    import torch

    from pipeline.models.cpu import has_arithmetic

    wanted = job.settings.dtype
    if job.on_cpu and (wanted == "float16" or not has_arithmetic(getattr(torch, wanted))):
        return "float32"
    return wanted


def _decided(job: TrainJob, scratch: Path, *, precomputed: bool) -> dict[str, Any]:
    settings, dtype = job.settings, computes_in(job)
    shared = {
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
    if settings.method == "dpo":
        cut = {} if job.tokens.truncation == "keep_start" else {"truncation_mode": job.tokens.truncation}
        return shared | {"precompute_ref_log_probs": precomputed} | cut
    simpo = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": settings.gamma}
    return shared | simpo | {"remove_unused_columns": False}
