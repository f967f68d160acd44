"""Tokens and log-probabilities equal those of TRL's DPOTrainer on real pairs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import Tokens
from pipeline.models.logprobs import LogprobEngine, score_pairs
from pipeline.models.prompts import PROMPT_TOO_LONG, PairTokenizer, TokenizedPair
from tests.fixtures_models import tiny_model
from tests.models.pairs import Row, demo_pairs, hh_pairs
from tests.models.trl_reference import trl_trainer

pytestmark = pytest.mark.filterwarnings("ignore")


def smollm2(directory: Path, dtype: torch.dtype = torch.float32):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval(), AutoTokenizer.from_pretrained(directory)


def assert_same_tokens(directory: Path, rows: list[Row], output: Path, max_length: int) -> list[TokenizedPair | str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = tiny_model("llama", vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1)
    trainer = trl_trainer(model, tokenizer, rows, output, max_length=max_length, precompute=False)
    ours = [PairTokenizer(tokenizer, Tokens(max_length=max_length)).tokenize(**row) for row in rows]
    kept = [pair for pair in ours if isinstance(pair, TokenizedPair)]
    theirs = trainer.train_dataset
    assert len(theirs) == len(kept)
    collated = trainer.data_collator([theirs[i] for i in range(len(theirs))])
    num_scored = collated["completion_mask"][:, 1:].sum(1).tolist()
    for index, (row, pair) in enumerate(zip(theirs, kept, strict=True)):
        assert pair.chosen_ids.tolist() == (row["prompt_ids"] + row["chosen_ids"])[:max_length]
        assert pair.rejected_ids.tolist() == (row["prompt_ids"] + row["rejected_ids"])[:max_length]
        assert pair.chosen_start == pair.rejected_start == pair.num_tokens_prompt == len(row["prompt_ids"])
        assert [pair.num_tokens_chosen, pair.num_tokens_rejected] == [num_scored[index], num_scored[len(kept) + index]]
    return ours


@pytest.mark.smollm2
@pytest.mark.parametrize("max_length", [2048, 90])
def test_tokens_equal_trl_on_our_pairs(smollm2_dir, tmp_path, max_length):
    ours = assert_same_tokens(smollm2_dir, demo_pairs(40), tmp_path, max_length)
    assert any(isinstance(pair, TokenizedPair) and pair.truncated for pair in ours) == (max_length == 90)


@pytest.mark.smollm2
def test_tokens_and_dropped_prompts_equal_trl_on_hh_pairs(smollm2_dir, shared_data, tmp_path):
    rows = hh_pairs(shared_data, 64)
    assert_same_tokens(smollm2_dir, rows, tmp_path / "long", 2048)
    ours = assert_same_tokens(smollm2_dir, rows, tmp_path / "short", 128)
    assert PROMPT_TOO_LONG in ours


def assert_same_logps(directory: Path, rows: list[Row], output: Path) -> None:
    model, tokenizer = smollm2(directory)
    pairs = [PairTokenizer(tokenizer, Tokens()).tokenize(**row) for row in rows]
    chosen, rejected = score_pairs(LogprobEngine(model), pairs)
    trainer = trl_trainer(model, tokenizer, rows, output, max_length=2048)
    theirs = trainer.train_dataset
    np.testing.assert_allclose(chosen, theirs["ref_chosen_logps"], rtol=1e-4)
    np.testing.assert_allclose(rejected, theirs["ref_rejected_logps"], rtol=1e-4)


@pytest.mark.smollm2
def test_float32_sums_equal_trl_on_our_pairs(smollm2_dir, tmp_path):
    assert_same_logps(smollm2_dir, demo_pairs(4), tmp_path)


@pytest.mark.slow
@pytest.mark.smollm2
def test_float32_sums_equal_trl_on_64_hh_pairs(smollm2_dir, shared_data, tmp_path):
    assert_same_logps(smollm2_dir, hh_pairs(shared_data, 64), tmp_path)


@pytest.mark.slow
@pytest.mark.smollm2
def test_float32_sums_equal_trl_on_12_of_our_pairs(smollm2_dir, tmp_path):
    assert_same_logps(smollm2_dir, demo_pairs(12), tmp_path)


def smollm2_pairs(directory: Path, count: int) -> list[TokenizedPair]:
    _, tokenizer = smollm2(directory)
    return [PairTokenizer(tokenizer, Tokens()).tokenize(**row) for row in demo_pairs(count)]


@pytest.mark.smollm2
def test_bfloat16_is_invariant_to_the_bit_and_close_to_float32(smollm2_dir):
    pairs = smollm2_pairs(smollm2_dir, 3)
    model, _ = smollm2(smollm2_dir)
    exact = np.stack(score_pairs(LogprobEngine(model), pairs))
    model = model.to(torch.bfloat16)
    half = np.stack(score_pairs(LogprobEngine(model), pairs))
    again = np.stack(score_pairs(LogprobEngine(model, token_budget=300), pairs[::-1]))[:, ::-1]
    np.testing.assert_array_equal(again, half)
    num_tokens = np.array([[p.num_tokens_chosen, p.num_tokens_rejected] for p in pairs]).T
    difference = np.abs(half - exact) / num_tokens
    assert difference.max() < 0.05
    assert np.sqrt(np.mean(difference**2)) < 0.02


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_do_not_depend_on_threads_to_the_bit(smollm2_dir, dtype):
    pairs = smollm2_pairs(smollm2_dir, 12)
    model, _ = smollm2(smollm2_dir, dtype)
    one = np.stack(score_pairs(LogprobEngine(model), pairs))
    torch.set_num_threads(2)
    two = np.stack(score_pairs(LogprobEngine(model, token_budget=700), pairs[::-1]))[:, ::-1]
    np.testing.assert_array_equal(two, one)
