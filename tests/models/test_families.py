"""The engines against transformers' own forward, one sequence at a time, on tiny random models of many families.

Windows are shorter than most of the sequences, softcaps bite, and heads are tied, untied and biased.
"""

import logging

import numpy as np
import pytest
import torch

from pipeline.models.logprobs import LogprobEngine
from pipeline.models.rewards import ClassifierEngine
from tests.fixtures_models import tiny_model
from tests.models.plain import num_read, plain_rewards, plain_sums

PACKED_FAMILIES = [
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "granite", "cohere", "phi", "phi3", "olmo2", "mixtral",
    "qwen3_moe", "gpt_oss", "gpt2",
]  # fmt: skip


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_packed_sums_equal_the_plain_forward(family, groups):
    model = tiny_model(family)
    expected = plain_sums(model, groups)
    engine = LogprobEngine(model, token_budget=200)
    scores = engine.score(groups)
    assert engine.kernel == "sdpa"
    np.testing.assert_allclose(scores.values, expected, rtol=2e-5)
    assert scores.values.dtype == np.float64


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_packed_bfloat16_sums_are_as_exact_as_the_plain_forward_in_bfloat16(family, groups):
    model = tiny_model(family)
    exact = plain_sums(model, groups)
    plain = plain_sums(model.to(torch.bfloat16), groups)
    engine = LogprobEngine(model, token_budget=200)
    scores = engine.score(groups)
    assert engine.kernel == "sdpa"
    ours, theirs = ((sums - exact) / num_read(groups) for sums in (scores.values, plain))
    assert np.sqrt(np.mean(ours**2)) <= 1.5 * np.sqrt(np.mean(theirs**2)) + 0.001
    # One token's way through the experts may turn on a rounding; medians do not.
    assert np.median(np.abs(ours)) <= 1.5 * np.median(np.abs(theirs)) + 0.002


def test_attention_that_cannot_be_packed_is_scored_one_by_one_with_a_warning(groups, caplog):
    model = tiny_model("mamba")
    expected = plain_sums(model, groups)
    with caplog.at_level(logging.WARNING):
        engine = LogprobEngine(model)
    assert engine.kernel == "naive"
    assert "one sequence at a time" in caplog.text
    np.testing.assert_allclose(engine.score(groups).values, expected, rtol=2e-5)


def test_a_rotary_embedding_that_depends_on_the_longest_sequence_is_not_packed(groups):
    model = tiny_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0})
    engine = LogprobEngine(model)
    assert engine.kernel == "naive"
    np.testing.assert_allclose(engine.score(groups).values, plain_sums(model, groups), rtol=2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads_score_as_the_plain_forward(family, tied, groups):
    model = tiny_model(family, tie_word_embeddings=tied)
    shares = model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert shares == tied
    expected = plain_sums(model, groups)
    np.testing.assert_allclose(LogprobEngine(model).score(groups).values, expected, rtol=2e-5)


def test_head_bias_counts(groups):
    model = tiny_model("llama", tie_word_embeddings=False)
    head = torch.nn.Linear(64, 512, bias=True)
    torch.nn.init.normal_(head.bias)
    model.set_output_embeddings(head.requires_grad_(requires_grad=False))
    expected = plain_sums(model, groups)
    engine = LogprobEngine(model)
    assert engine.kernel == "sdpa"
    np.testing.assert_allclose(engine.score(groups).values, expected, rtol=2e-5)


def test_a_lora_adapter_scores_as_in_its_own_forward_and_merged(groups):
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama")
    without = LogprobEngine(base).score(groups).values
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    model.eval()
    expected = plain_sums(model.get_base_model(), groups)
    engine = LogprobEngine(model)
    scores = engine.score(groups).values
    assert engine.kernel == "sdpa"
    np.testing.assert_allclose(scores, expected, rtol=2e-5)
    assert not np.allclose(scores, without, rtol=1e-3)
    merged = LogprobEngine(model.merge_and_unload())
    assert merged.kernel == "sdpa"
    np.testing.assert_allclose(merged.score(groups).values, expected, rtol=2e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "qwen3_moe", "gpt2"])
def test_packed_rewards_equal_the_plain_forward(family, groups):
    model = tiny_model(family, classifier=True, num_labels=1)
    expected = plain_rewards(model, groups)
    engine = ClassifierEngine(model, token_budget=150)
    assert engine.kernel == "sdpa"
    np.testing.assert_allclose(engine.score(groups).values, expected, rtol=1e-4, atol=1e-5)
