"""TRL as a scorer: its real DPOTrainer, of which only the log-probability batches are timed."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.scoring_peers import Timed, timing
from tests.models.pairs import Row
from tests.models.trl_reference import trl_trainer


def run_trl(model: Any, tokenizer: Any, rows: list[Row], timed: Timed) -> None:
    """Time the log-probability batches inside a real DPOTrainer's precomputation."""
    from trl import DPOTrainer

    original = DPOTrainer.compute_ref_log_probs
    spent = Timed(name="batch")

    def clocked(self: Any, *args: Any) -> Any:
        with timing(spent):
            return original(self, *args)

    DPOTrainer.compute_ref_log_probs = clocked
    try:
        with tempfile.TemporaryDirectory() as output:
            trainer = trl_trainer(model, tokenizer, rows, Path(output), max_length=2048)
    finally:
        DPOTrainer.compute_ref_log_probs = original
    columns = [trainer.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected")]
    timed.sums = np.asarray([list(column) for column in columns])
    timed.cpu_s.append(sum(spent.cpu_s))
    timed.wall_s.append(sum(spent.wall_s))
