"""What TRL itself does with a pair: its token columns and its precomputed reference log-probabilities."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.models.pairs import Row


def trl_trainer(
    model: Any, tokenizer: Any, rows: list[Row], output: Path, *, max_length: int, precompute: bool = True
) -> Any:
    """A real DPOTrainer over conversational rows, which tokenises them and, unless told not to, scores them."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=str(output),
        max_length=max_length,
        precompute_ref_log_probs=precompute,
        per_device_train_batch_size=4,
        bf16=False,
        use_cpu=True,
        report_to=[],
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    return DPOTrainer(
        model=model,
        ref_model=None if precompute else copy.deepcopy(model),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def trl_tokens(tokenizer: Any, rows: Any, output: Path, *, max_length: int) -> Any:
    """The rows, or a dataset, as TRL's DPOTrainer tokenises them: prompt_ids, chosen_ids and rejected_ids."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(output_dir=str(output), max_length=max_length, bf16=False, use_cpu=True, report_to=[])
    dataset = Dataset.from_list(rows, on_mixed_types="use_json") if isinstance(rows, list) else rows
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    return DPOTrainer._prepare_dataset(trainer, dataset, tokenizer, config, "train")
