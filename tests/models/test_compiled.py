"""Compiled layers: the plain forward's numbers, the same for any company, or one clear error."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import TorchModel
from pipeline.errors import ModelError
from pipeline.models.fingerprints import model_fingerprint
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.rewards import ClassifierEngine
from tests.fixtures_models import tiny_model
from tests.models.plain import num_read, plain_rewards, plain_sums


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def num_graphs() -> int:
    """Pieces of layers that this test compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", pytest.param("gemma2", marks=pytest.mark.soak),
                                    pytest.param("qwen3_moe", marks=pytest.mark.soak)])  # fmt: skip
def test_compiled_layers_give_the_plain_sums_and_nothing_is_compiled_after_the_start(family, groups):
    model = tiny_model(family)
    expected = plain_sums(model, groups)
    engine = LogprobEngine(model, token_budget=200, compiled=True)
    assert engine.kernel == "sdpa"
    compiled = num_graphs()
    assert compiled > 0
    whole = engine.score(groups).values
    np.testing.assert_allclose(whole, expected, rtol=2e-5)
    assert num_graphs() == compiled
    if family != "qwen3_moe":
        alone = np.concatenate([engine.score([group]).values for group in groups])
        np.testing.assert_array_equal(alone, whole)


@pytest.mark.soak
def test_more_layers_are_compiled_no_more_often():
    counts = []
    for num_layers in (3, 6):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        LogprobEngine(tiny_model("llama", num_hidden_layers=num_layers), compiled=True)
        counts.append(num_graphs())
    assert counts[0] == counts[1]


@pytest.mark.soak
def test_half_precision_is_as_exact_compiled_as_not(groups):
    exact = plain_sums(tiny_model("llama"), groups)
    plain, found = (
        LogprobEngine(tiny_model("llama").to(torch.bfloat16), token_budget=200, compiled=compiled).score(groups)
        for compiled in (False, True)
    )
    errors = [np.abs(scores.values - exact) / num_read(groups) for scores in (plain, found)]
    assert np.median(errors[1]) <= 2.0 * np.median(errors[0]) + 0.002


def test_a_model_without_packed_steps_says_that_it_is_not_compiled(groups, caplog):
    model = tiny_model("mamba")
    engine = LogprobEngine(model, compiled=True)
    assert engine.kernel == "naive"
    assert "without compile" in caplog.text
    np.testing.assert_allclose(engine.score(groups).values, plain_sums(model, groups), rtol=2e-5)


@pytest.mark.soak
def test_an_adapter_is_compiled_with_its_layers(groups):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.1)
    adapted.eval().requires_grad_(requires_grad=False)
    expected = plain_sums(adapted, groups)
    assert np.abs(expected - plain_sums(tiny_model("llama"), groups)).min() > 1e-3
    found = LogprobEngine(adapted, compiled=True).score(groups).values
    assert num_graphs() > 0
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.slow
def test_compiled_rewards_equal_plain_ones(groups):
    model = tiny_model("llama", classifier=True, num_labels=1)
    expected = plain_rewards(model, groups)
    found = ClassifierEngine(model, compiled=True).score(groups).values
    assert num_graphs() > 0
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.soak
def test_layers_rounded_to_8_bits_may_be_compiled(groups):
    expected = LogprobEngine(tiny_model("llama"), fp8=True).score(groups).values
    exact = LogprobEngine(tiny_model("llama")).score(groups).values
    found = LogprobEngine(tiny_model("llama"), fp8=True, compiled=True).score(groups).values
    assert np.abs(found - expected).max() < 0.2 * np.abs(exact - expected).max()


def test_without_a_compiler_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    wanted = pytest.raises(ModelError, match=r"LlamaForCausalLM cannot be compiled here.*compile: false")
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}), wanted as error:
        LogprobEngine(tiny_model("llama"), compiled=True)
    assert "\n" not in str(error.value)


def test_scores_of_compiled_layers_are_not_mixed_with_others(tiny_model_dir):
    model = TorchModel(model=str(tiny_model_dir("llama")))
    assert model_fingerprint(model) != model_fingerprint(model.model_copy(update={"compile": True}))
