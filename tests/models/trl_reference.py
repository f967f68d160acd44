"""What TRL itself does with a pair: its token columns and its precomputed reference log-probabilities."""

from pathlib import Path
from typing import Any

from tests.models.pairs import Row


def trl_trainer(model: Any, tokenizer: Any, rows: list[Row], output: Path, **settings: Any) -> Any:
    """A real DPOTrainer over conversational rows, which tokenises and scores them."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=str(output),
        precompute_ref_log_probs=True,
        per_device_train_batch_size=4,
        bf16=False,
        use_cpu=True,
        report_to=[],
        gradient_checkpointing=False,
        disable_tqdm=True,
        **settings,
    )
    return DPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
