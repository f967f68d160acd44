"""The engines on a CUDA GPU in bfloat16: the numbers of the plain forward in float32, within that dtype's noise."""

import numpy as np
import pytest
import torch

from pipeline.models import logprobs
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import Completion
from pipeline.models.rewards import ClassifierEngine
from tests.fixtures_models import tiny_model
from tests.models.plain import num_read, plain_rewards, plain_sums
from tests.models.test_families import PACKED_FAMILIES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


def on_gpu(family: str, **options):
    return tiny_model(family, **options).to("cuda", torch.bfloat16)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_packed_sums_are_as_exact_as_the_plain_forward_in_bfloat16(family, compiled, groups):
    exact = plain_sums(tiny_model(family), groups)
    plain = plain_sums(tiny_model(family).to(torch.bfloat16), groups)
    engine = LogprobEngine(on_gpu(family), token_budget=200, compiled=compiled)
    scores = engine.score(groups)
    assert engine.kernel == "varlen"
    ours, theirs = ((sums - exact) / num_read(groups) for sums in (scores.values, plain))
    assert rms(ours) <= 2.0 * rms(theirs) + 0.002
    assert np.median(np.abs(ours)) <= 2.0 * np.median(np.abs(theirs)) + 0.002


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2"])
def test_float32_on_a_gpu_equals_the_cpu(family, groups):
    model = tiny_model(family).to("cuda")
    engine = LogprobEngine(model, token_budget=200)
    assert engine.kernel == "sdpa"
    np.testing.assert_allclose(engine.score(groups).values, plain_sums(tiny_model(family), groups), rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
def test_packed_rewards_are_as_exact_as_the_plain_forward_in_bfloat16(family, groups):
    labels = {"classifier": True, "num_labels": 1}
    exact = plain_rewards(tiny_model(family, **labels), groups)
    plain = plain_rewards(tiny_model(family, **labels).to(torch.bfloat16), groups)
    engine = ClassifierEngine(on_gpu(family, **labels), token_budget=200)
    assert engine.kernel == "varlen"
    assert rms(engine.score(groups).values - exact) <= 1.5 * rms(plain - exact) + 0.01


def test_layers_in_8_bits_are_near(groups):
    exact = plain_sums(tiny_model("llama"), groups)
    engine = LogprobEngine(on_gpu("llama"), fp8=True)
    scores = engine.score(groups)
    difference = np.abs(scores.values - exact) / num_read(groups)
    assert 0.0 < np.median(difference) < 0.3


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_order_and_shards_change_nothing_under_one_budget_but_a_rounding(family, groups):
    engine = LogprobEngine(on_gpu(family), token_budget=200)
    expected = engine.score(groups)
    order = np.random.default_rng(0).permutation(len(groups))
    shuffled = engine.score([groups[i] for i in order]).values
    found = np.split(expected.values, np.cumsum([len(g) for g in groups])[:-1])
    difference = np.abs(shuffled - np.concatenate([found[i] for i in order]))
    assert difference.max() / num_read(groups).min() < 0.1


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("compiled", [False, True])
def test_deterministic_scores_have_the_same_bits_alone_and_together(family, compiled, groups, monkeypatch):
    monkeypatch.setattr(logprobs, "_HEAD_BYTES_GPU", 64 * 512 * 4)  # chunks of 64 rows, some of them full
    engine = LogprobEngine(on_gpu(family), token_budget=256, compiled=compiled, deterministic=True)
    together = engine.score(groups).values
    alone = np.concatenate([engine.score([group]).values for group in groups])
    np.testing.assert_array_equal(alone, together)


def test_deterministic_rewards_have_the_same_bits_alone_and_together(groups):
    model = on_gpu("llama", classifier=True, num_labels=1)
    engine = ClassifierEngine(model, token_budget=256, deterministic=True)
    together = engine.score(groups).values
    alone = np.concatenate([engine.score([group]).values for group in groups])
    np.testing.assert_array_equal(alone, together)


def test_a_full_memory_makes_steps_smaller_and_loses_nothing():
    random = np.random.default_rng(0)
    ids = [random.integers(3, 400, 900).astype(np.int32) for _ in range(400)]
    groups = [[Completion(ids=i, start=400)] for i in ids]
    model = on_gpu("llama", hidden_size=512, intermediate_size=8192)
    expected = LogprobEngine(model, token_budget=4_096).score(groups).values
    engine = LogprobEngine(model, token_budget=400_000)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (3 << 30)) / total)
    try:
        scores = engine.score(groups)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert scores.left_out == {}
    assert np.abs(scores.values - expected).max() / 500 < 0.01
    assert engine._budget.tokens < 400_000
