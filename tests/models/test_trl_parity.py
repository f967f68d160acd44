"""Tokens and log-probabilities equal those of TRL's DPOTrainer on real pairs.

ALIGNPOT_PARITY_PAIRS sets how many of HH-RLHF are scored.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import Tokens
from pipeline.drops import Reason
from pipeline.models.cpu import has_arithmetic
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.prompts import PairTokenizer, TokenizedPair
from tests.fixtures_models import tiny_model
from tests.models.pairs import Row, demo_pairs, hh_pairs, score_pairs
from tests.models.smollm2 import smollm2
from tests.models.trl_reference import trl_trainer

pytestmark = pytest.mark.filterwarnings("ignore")

HH_PAIRS = int(os.environ.get("ALIGNPOT_PARITY_PAIRS", "4"))
EMULATED_PAIRS = 2


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
    num_kept = collated["completion_mask"][:, 1:].sum(1).tolist()
    for index, (row, pair) in enumerate(zip(theirs, kept, strict=True)):
        assert pair.chosen_ids.tolist() == (row["prompt_ids"] + row["chosen_ids"])[:max_length]
        assert pair.rejected_ids.tolist() == (row["prompt_ids"] + row["rejected_ids"])[:max_length]
        assert pair.chosen_start == pair.rejected_start == pair.num_tokens_prompt == len(row["prompt_ids"])
        assert [pair.num_tokens_chosen, pair.num_tokens_rejected] == [num_kept[index], num_kept[len(kept) + index]]
    return ours


@pytest.mark.smollm2
@pytest.mark.parametrize("max_length", [2048, 90])
def test_tokens_equal_trl_on_our_pairs(smollm2_dir, tmp_path, max_length):
    ours = assert_same_tokens(smollm2_dir, demo_pairs(40), tmp_path, max_length)
    assert any(isinstance(pair, TokenizedPair) and pair.truncated for pair in ours) == (max_length == 90)


@pytest.mark.smollm2
def test_tokens_and_dropped_prompts_equal_trl_on_hh_pairs(smollm2_dir, shared_data, tmp_path):
    rows = hh_pairs(shared_data / "hh_harmless.jsonl.gz", 64)
    assert_same_tokens(smollm2_dir, rows, tmp_path / "long", 2048)
    ours = assert_same_tokens(smollm2_dir, rows, tmp_path / "short", 128)
    assert Reason.PROMPT_TOO_LONG in ours


def assert_same_logps(directory: Path, rows: list[Row], output: Path) -> None:
    model, tokenizer = smollm2(directory)
    pairs = [PairTokenizer(tokenizer, Tokens()).tokenize(**row) for row in rows]
    chosen, rejected = score_pairs(LogprobEngine(model), pairs)
    trainer = trl_trainer(model, tokenizer, rows, output, max_length=2048)
    theirs = trainer.train_dataset
    np.testing.assert_allclose(chosen, theirs["ref_chosen_logps"], rtol=1e-4)
    np.testing.assert_allclose(rejected, theirs["ref_rejected_logps"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.smollm2
def test_float32_sums_equal_trl_on_our_pairs(smollm2_dir, tmp_path):
    assert_same_logps(smollm2_dir, demo_pairs(4), tmp_path)


@pytest.fixture(scope="module")
def hh(smollm2_dir, shared_data):
    """HH pairs, tokenised, and their float32 sums by the packed engine: rows, pairs, (chosen, rejected)."""
    rows = hh_pairs(shared_data / "hh_harmless.jsonl.gz", HH_PAIRS)
    model, tokenizer = smollm2(smollm2_dir)
    pairs = [PairTokenizer(tokenizer, Tokens()).tokenize(**row) for row in rows]
    return rows, pairs, score_pairs(LogprobEngine(model), pairs)


@pytest.mark.soak
@pytest.mark.smollm2
def test_float32_sums_equal_trl_on_hh_pairs(smollm2_dir, hh, tmp_path):
    rows, _, (chosen, rejected) = hh
    theirs = trl_trainer(*smollm2(smollm2_dir), rows, tmp_path, max_length=2048).train_dataset
    np.testing.assert_allclose(chosen, theirs["ref_chosen_logps"], rtol=1e-4)
    np.testing.assert_allclose(rejected, theirs["ref_rejected_logps"], rtol=1e-4)


def plain_sum(model, pair: TokenizedPair, side: str) -> float:
    """Log-probability of one response by transformers' own forward of that sequence alone, without our engine."""
    ids = torch.as_tensor(getattr(pair, f"{side}_ids"), dtype=torch.int64)[None]
    start = getattr(pair, f"{side}_start")
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return logp[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]].sum().item()


@pytest.mark.soak
@pytest.mark.smollm2
def test_float32_sums_equal_a_plain_forward_of_each_sequence_on_hh_pairs(smollm2_dir, hh):
    _, pairs, (chosen, rejected) = hh
    model, _ = smollm2(smollm2_dir)
    for index, pair in enumerate(pairs):
        for side, ours in (("chosen", chosen), ("rejected", rejected)):
            assert ours[index] == pytest.approx(plain_sum(model, pair, side), rel=1e-4)


@pytest.mark.soak
@pytest.mark.smollm2
def test_bfloat16_stays_within_its_noise_of_float32_on_hh_pairs(smollm2_dir, hh):
    """Mean log-probs: 0.02 RMS; 0.05 at most, but for responses of a few tokens no worse than transformers' own."""
    _, pairs, exact = hh
    if not has_arithmetic(torch.bfloat16):
        pairs, exact = pairs[:EMULATED_PAIRS], [side[:EMULATED_PAIRS] for side in exact]
    model = smollm2(smollm2_dir)[0].to(torch.bfloat16)
    rounded = score_pairs(LogprobEngine(model), pairs)
    differences = []
    for side, ours, reference in zip(("chosen", "rejected"), rounded, exact, strict=True):
        for index, pair in enumerate(pairs):
            num_tokens = getattr(pair, f"num_tokens_{side}")
            differences.append((ours[index] - reference[index]) / num_tokens)
            bound = 0.05
            if num_tokens < 8:
                bound = max(bound, abs(plain_sum(model, pair, side) - reference[index]) / num_tokens)
            assert abs(differences[-1]) <= bound, (side, index, num_tokens)
    assert np.sqrt(np.mean(np.square(differences))) <= 0.02


@pytest.mark.soak
@pytest.mark.smollm2
def test_bfloat16_is_invariant_to_the_bit_and_close_to_float32(smollm2_dir):
    model, tokenizer = smollm2(smollm2_dir, torch.bfloat16)
    pairs = [PairTokenizer(tokenizer, Tokens()).tokenize(**row) for row in demo_pairs(2)]
    model = model.float()
    exact = score_pairs(LogprobEngine(model), pairs)
    model = model.to(torch.bfloat16)
    half = score_pairs(LogprobEngine(model), pairs)
    again = score_pairs(LogprobEngine(model, token_budget=300), pairs[::-1])[:, ::-1]
    np.testing.assert_array_equal(again, half)
    num_tokens = np.array([[p.num_tokens_chosen, p.num_tokens_rejected] for p in pairs]).T
    difference = np.abs(half - exact) / num_tokens
    assert difference.max() < 0.05
    assert np.sqrt(np.mean(difference**2)) < 0.02
