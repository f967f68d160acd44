"""A small subset with scores, and jobs that train a tiny model on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from pipeline.config import Objective, Tokens, TorchModel, Train
from pipeline.models.loading import load_causal_lm, load_tokenizer
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.prompts import PairTokenizer
from pipeline.training.job import TrainJob
from tests.models.pairs import score_pairs

TOKENS = Tokens(max_length=64)
TEXT = "the quick brown fox answers a question about the weather in a few short sentences"


@pytest.fixture(autouse=True)
def _libraries_as_before():
    datasets.disable_progress_bars()
    yield
    datasets.enable_caching()
    datasets.enable_progress_bars()


def message(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def rows(num_rows: int = 8, start: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(start)
    words = TEXT.split()
    texts = [" ".join(rng.choice(words, size=rng.integers(4, 12))) for _ in range(3 * num_rows)]
    return [
        {
            "id": f"p{start + i}",
            "prompt": message("user", texts[3 * i]),
            "chosen": message("assistant", texts[3 * i + 1]),
            "rejected": message("assistant", texts[3 * i + 2]),
            "tools": None,
        }
        for i in range(num_rows)
    ]


def scored(pairs: list[dict[str, Any]], model: Path, role: str = "reference") -> list[dict[str, Any]]:
    """The rows with log-probs and token counts as the scoring engine gives them."""
    section = TorchModel(model=str(model), dtype="float32")
    tokenizer = PairTokenizer(load_tokenizer(section), TOKENS)
    tokenised: Any = [tokenizer.tokenize(row["prompt"], row["chosen"], row["rejected"]) for row in pairs]
    chosen, rejected = score_pairs(LogprobEngine(load_causal_lm(section)), tokenised)
    return [
        {
            **row,
            f"{role}_logp_chosen": float(chosen[i]),
            f"{role}_logp_rejected": float(rejected[i]),
            "num_tokens_chosen": pair.num_tokens_chosen,
            "num_tokens_rejected": pair.num_tokens_rejected,
        }
        for i, (row, pair) in enumerate(zip(pairs, tokenised, strict=True))
    ]


def save(pairs: list[dict[str, Any]], folder: Path) -> str:
    """A folder as that of a subset."""
    DatasetDict(train=Dataset.from_list(pairs)).save_to_disk(folder)
    return str(folder)


@pytest.fixture
def make_job(tmp_path: Path, tiny_model_dir: Callable[..., Path]) -> Callable[..., TrainJob]:
    """Factory of jobs on the tiny llama and 8 pairs; keywords are those of the Train section, or of the job."""

    def make(output: str = "trained", **changes: Any) -> TrainJob:
        ours = {"datasets", "policy", "reference", "objective", "tokens", "storage"}
        data = changes.pop("datasets", None) or (save(rows(), tmp_path / "hf"),)
        settings = {"method": "simpo", "learning_rate": 1e-3, "max_steps": 2, "dtype": "float32"}
        settings |= {key: value for key, value in changes.items() if key not in ours}
        parts = {
            "policy": TorchModel(model=str(tiny_model_dir("llama")), dtype="float32"),
            "objective": Objective(name="simpo"),
            "tokens": TOKENS,
            **{key: value for key, value in changes.items() if key in ours},
        }
        return TrainJob(datasets=data, output=tmp_path / "out" / output, settings=Train(**settings), **parts)

    return make
