"""One training by TRL in this process: a model loaded, trained on the pairs of a job, and saved.

Full training keeps its weights in float32 and computes in the settings' dtype, so that small steps are not rounded
away; a LoRA adapter is trained on frozen weights of that dtype and, if the job says so, merged in float32. A saved
model has the policy's dtype, its config, its generation config and its tokenizer, and nothing pickled.
"""

import copy
import functools
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Final

from pipeline.config import TorchModel
from pipeline.errors import AlignpotError
from pipeline.schema import TOOLS
from pipeline.training.job import TrainJob
from pipeline.training.pairs import (
    MESSAGE_COLUMNS,
    REFERENCE_COLUMNS,
    TOKEN_COLUMNS,
    TOKEN_COUNTS,
    Pairs,
    load_pairs,
)
from pipeline.training.trl_options import computes_in, trl_config

_LOGGED: Final = {"loss": "loss", "reward_accuracy": "rewards/accuracies", "reward_margin": "rewards/margins"}


def train_with_trl(job: TrainJob, folder: Path, scratch: Path) -> dict[str, Any]:
    """Train a job's policy and save it in `folder`; files needed meanwhile go below `scratch`.

    Returns:
        The summary: rows, steps, and loss, reward accuracy and reward margin of the first and the last step.

    Raises:
        ConfigError, ModelError, SourceError, SchemaError, DataError: what the job names cannot be used.
        AlignpotError: the loss is no number any more.
    """
    from datasets import disable_caching
    from transformers import set_seed

    from pipeline.models.loading import load_tokenizer

    _quiet()
    disable_caching()  # caches would lie beside the data
    precomputed = uses_precomputed(job)
    config = trl_config(job, scratch, precomputed=precomputed)
    tokenizer = load_tokenizer(job.policy)
    pairs = load_pairs(job, tokenizer, scratch, with_reference=precomputed)
    set_seed(job.settings.seed)
    model = _load(job, job.policy, for_training=True)
    configs = (
        copy.deepcopy(model.config),
        copy.deepcopy(model.generation_config),
    )  # as they are before a trainer's edits
    trainer = _trainer(job, config, model, tokenizer, pairs)
    begin = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - begin
    summary = _summary(trainer.state.log_history)
    _save(job, trainer.accelerator.unwrap_model(trainer.model), configs, folder)
    rows = {"rows": len(pairs.dataset), "rows_left_out": pairs.num_left_out}
    return {**rows, **summary, "precomputed_reference": precomputed, "seconds": round(seconds, 3)}


def uses_precomputed(job: TrainJob) -> bool:
    """Whether reference log-probs are read: by dpo, if they are wanted and were scored on the tokens that TRL has."""
    wanted = job.settings.method == "dpo" and job.settings.precomputed_reference
    if wanted and job.tokens.preset != "trl":
        _say(f"reference log-probs of tokens.preset {job.tokens.preset} are those of other tokens: run the model anew")
        return False
    return wanted


def _trainer(job: TrainJob, config: Any, model: Any, tokenizer: Any, pairs: Pairs) -> Any:
    """The trainer of the method, which says each step on stderr."""
    from transformers import PrinterCallback

    if job.tokens.chat_template is not None:
        tokenizer.chat_template = job.tokens.chat_template
    # TRL renders through the tokenizer and has no say over the date that templates print.
    tokenizer.apply_chat_template = functools.partial(
        tokenizer.apply_chat_template, strftime_now=job.tokens.date.strftime
    )
    shared = {
        "model": model,
        "args": config,
        "processing_class": tokenizer,
        "peft_config": _adapter(job),
        "callbacks": [_progress()],
    }
    if job.settings.method == "simpo":
        from pipeline.training.tokenised_cpo import TokenisedCPOTrainer

        dataset = pairs.dataset.select_columns(list(TOKEN_COLUMNS))
        trainer = TokenisedCPOTrainer(train_dataset=dataset, **shared)
    else:
        trainer = _dpo_trainer(job, pairs, shared, precomputed=config.precompute_ref_log_probs)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _dpo_trainer(job: TrainJob, pairs: Pairs, shared: dict[str, Any], *, precomputed: bool) -> Any:
    held = pairs.dataset.column_names
    columns = [*MESSAGE_COLUMNS, *(name for name in (TOOLS, *TOKEN_COUNTS) if name in held)]
    if precomputed:
        from pipeline.training.precomputed import REFERENCE_COLUMNS as TRL_COLUMNS
        from pipeline.training.precomputed import precomputed_dpo_trainer

        dataset = pairs.dataset.select_columns([*columns, *REFERENCE_COLUMNS])
        renamed = dataset.rename_columns(dict(zip(REFERENCE_COLUMNS, TRL_COLUMNS, strict=True)))
        return precomputed_dpo_trainer()(train_dataset=renamed, **shared)
    from trl import DPOTrainer

    return DPOTrainer(train_dataset=pairs.dataset.select_columns(columns), ref_model=_reference(job), **shared)


def _reference(job: TrainJob) -> Any:
    """The model to compare with; None where the trainer gets it by switching the adapter off."""
    if job.reference is not None:
        return _load(job, job.reference, for_training=False)
    return None if job.settings.adapter == "lora" else _load(job, job.policy, for_training=False)


def _load(job: TrainJob, section: TorchModel, *, for_training: bool) -> Any:
    from pipeline.models.loading import load_causal_lm

    settings = job.settings
    all_weights = for_training and settings.adapter == "none"
    changes = {
        "dtype": "float32" if all_weights else computes_in(job),
        "num_gpus": settings.num_gpus,
        "num_threads": settings.num_threads,
    }
    model = load_causal_lm(section.model_copy(update=changes))
    if section.adapter is not None:
        model = model.merge_and_unload()
    return model.train().requires_grad_(all_weights) if for_training else model


def _adapter(job: TrainJob) -> Any:
    if job.settings.adapter == "none":
        return None
    from peft import LoraConfig

    rank = job.settings.rank
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def _save(job: TrainJob, model: Any, configs: tuple[Any, Any], folder: Path) -> None:
    """Weights in the policy's dtype, and the policy's own tokenizer, which next to a reference must be the same.

    Where an adapter is wanted alone, that is all there is.
    """
    import torch

    from pipeline.models.loading import load_tokenizer

    if job.settings.adapter == "lora" and not job.merge:
        model.save_pretrained(folder)
        return
    if job.settings.adapter == "lora":
        model = model.to("cpu", torch.float32).merge_and_unload()
    model = model.to(getattr(torch, job.policy.dtype))
    model.config, model.generation_config = configs
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(job.policy)
    if not tokenizer.chat_template:
        tokenizer.chat_template = job.tokens.chat_template
    tokenizer.save_pretrained(folder)


def _summary(history: list[dict[str, float]]) -> dict[str, Any]:
    steps = [entry for entry in history if "loss" in entry]
    bad = next((entry for entry in steps if not math.isfinite(entry["loss"])), None)
    if bad is not None:
        raise AlignpotError(
            f"Training diverged: the loss is {bad['loss']} at step {bad.get('step')}. Lower train.learning_rate."
        )
    figures = {name: [steps[0].get(key), steps[-1].get(key)] for name, key in _LOGGED.items()}
    return {"steps": len(steps), **figures}


def _progress() -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
            if logs and "loss" in logs:
                figures = (f"{name} {logs[key]:.4g}" for name, key in _LOGGED.items() if key in logs)
                _say(f"step {state.global_step}/{state.max_steps}: {', '.join(figures)}")

    return Progress()


def _quiet() -> None:
    """Keep libraries from printing: what they warn of may quote rows."""
    import datasets
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()


def _say(text: str) -> None:
    sys.stderr.write(f"training: {text}\n")
    sys.stderr.flush()
