"""One training by TRL in this process: a model is loaded, trained on the pairs of a job, and saved.

Full training keeps its weights in float32 and computes in the settings' dtype, so that small steps are not rounded
away. A LoRA adapter is trained on frozen weights of that dtype and, if the job says so, merged in float32. A saved
model has the policy's dtype, its config, its generation config and its tokenizer, and nothing pickled.
"""

import copy
import functools
import math
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.config import TorchModel
from pipeline.errors import AlignpotError
from pipeline.schema import TEMPLATE_KWARGS, TOOLS, WEIGHT
from pipeline.training.job import TrainJob
from pipeline.training.pairs import MESSAGE_COLUMNS, REFERENCE_COLUMNS, TOKEN_COLUMNS, TOKEN_COUNTS, load_pairs
from pipeline.training.trl_options import computes_in, trl_config
from pipeline.training.weighted import weighted_cpo, weighted_dpo

if TYPE_CHECKING:
    from datasets import Dataset

_LOGGED: Final = {"loss": "loss", "reward_accuracy": "rewards/accuracies", "reward_margin": "rewards/margins"}


def train_with_trl(job: TrainJob, folder: Path, scratch: Path) -> dict[str, Any]:
    """Train a job's policy and save it in `folder`; temporary files go below `scratch`.

    Returns:
        The summary: rows, steps, and loss, reward accuracy and reward margin of the first and the last step.
    """
    from transformers import PrinterCallback, set_seed

    from pipeline.models.loading import load_tokenizer

    _quiet()
    # Reference log-probs that were scored on other tokens than TRL's cannot be used.
    wanted = job.settings.method == "dpo" and job.settings.precomputed_reference
    precomputed = wanted and job.tokens.preset == "trl"
    if wanted and not precomputed:
        _say(f"reference log-probs of tokens.preset {job.tokens.preset} are those of other tokens: run the model anew")
    config = trl_config(job, scratch, precomputed=precomputed)
    tokenizer = load_tokenizer(job.policy)
    pairs, num_left_out = load_pairs(job, tokenizer, scratch, with_reference=precomputed)
    set_seed(job.settings.seed)
    model = _load(job, job.policy, for_training=True)
    configs = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)  # before a trainer edits them
    trainer = _trainer(job, config, model, tokenizer, pairs)
    trainer.remove_callback(PrinterCallback)
    begin = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - begin
    summary = _summary(trainer.state.log_history)
    _save(job, trainer.accelerator.unwrap_model(trainer.model), configs, folder)
    rows = {"rows": len(pairs), "rows_left_out": num_left_out, "weighted": WEIGHT in pairs.column_names}
    return {**rows, **summary, "precomputed_reference": precomputed, "seconds": round(seconds, 3)}


def _trainer(job: TrainJob, config: Any, model: Any, tokenizer: Any, pairs: "Dataset") -> Any:
    """The trainer of the method, which prints each step on stderr."""
    if job.tokens.chat_template is not None:
        tokenizer.chat_template = job.tokens.chat_template
    # TRL renders through the tokenizer and cannot set the date that templates print.
    tokenizer.apply_chat_template = functools.partial(
        tokenizer.apply_chat_template, **{**job.tokens.template_kwargs, "strftime_now": job.tokens.date.strftime}
    )
    adapter = None
    if job.settings.adapter == "lora":
        from peft import LoraConfig

        rank = job.settings.rank
        adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    shared = {
        "model": model,
        "args": config,
        "processing_class": tokenizer,
        "peft_config": adapter,
        "callbacks": [_progress()],
    }
    weight = [WEIGHT] if WEIGHT in pairs.column_names else []
    if job.settings.method == "simpo":
        kind = weighted_cpo(_cpo_trainer()) if weight else _cpo_trainer()
        return kind(train_dataset=pairs.select_columns([*TOKEN_COLUMNS, *weight]), **shared)
    columns = [
        *MESSAGE_COLUMNS,
        *(name for name in (TOOLS, TEMPLATE_KWARGS, *TOKEN_COUNTS, WEIGHT) if name in pairs.column_names),
    ]
    if config.precompute_ref_log_probs:
        from pipeline.training import precomputed

        pairs = pairs.select_columns([*columns, *REFERENCE_COLUMNS])
        pairs = pairs.rename_columns(dict(zip(REFERENCE_COLUMNS, precomputed.REFERENCE_COLUMNS, strict=True)))
        kind = precomputed.precomputed_dpo_trainer()
        return (weighted_dpo(kind) if weight else kind)(train_dataset=pairs, **shared)
    from trl import DPOTrainer

    reference = None  # the trainer gets it by switching the adapter off
    if job.reference is not None or job.settings.adapter == "none":
        reference = _load(job, job.reference or job.policy, for_training=False)
    kind = weighted_dpo(DPOTrainer) if weight else DPOTrainer
    return kind(train_dataset=pairs.select_columns(columns), ref_model=reference, **shared)


def _cpo_trainer() -> Any:
    from trl.experimental.cpo import CPOTrainer

    class TokenisedCPOTrainer(CPOTrainer):  # type: ignore[misc]
        """TRL's CPOTrainer on token ids that are there already: those of TOKEN_COLUMNS.

        By itself it tokenises by an older rule than TRL's DPOTrainer: it adds BOS and EOS if the template ends
        otherwise. The margin it trains would then be that of other tokens than were scored.
        """

        def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:  # noqa: ARG002
            """What the parent makes of a row of text: ids, mask and labels of both sides, and of the prompt."""
            batch: dict[str, Any] = {}
            for side in ("chosen", "rejected"):
                ids, start = feature[f"{side}_ids"], feature[f"{side}_start"]
                batch[f"{side}_input_ids"] = ids
                batch[f"{side}_attention_mask"] = [1] * len(ids)
                batch[f"{side}_labels"] = [-100] * start + ids[start:]
            prompt = feature["chosen_ids"][: feature["chosen_start"]]
            return {**batch, "prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}

    return TokenisedCPOTrainer


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


def _save(job: TrainJob, model: Any, configs: tuple[Any, Any], folder: Path) -> None:
    """Save the adapter alone if the job says so. Else: weights in the policy's dtype, and the policy's own tokenizer,
    which must equal that of the reference.
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
    """A callback that prints each step."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
            if logs and "loss" in logs:
                figures = (f"{name} {logs[key]:.4g}" for name, key in _LOGGED.items() if key in logs)
                _say(f"step {state.global_step}/{state.max_steps}: {', '.join(figures)}")

    return Progress()


def _quiet() -> None:
    """Keep libraries from printing, since warnings may quote rows, and from caching beside the data."""
    import datasets
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    datasets.disable_caching()
    transformers.logging.disable_progress_bar()


def _say(text: str) -> None:
    sys.stderr.write(f"training: {text}\n")
    sys.stderr.flush()
