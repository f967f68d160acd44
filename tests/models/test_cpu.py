"""Half-precision models on CPUs that compute in it and on those that do not, whichever kind the tests run on."""

import numpy as np
import pytest
import torch

from pipeline.config import ClassifierReward, TorchModel
from pipeline.models import cpu
from pipeline.models.loading import load_causal_lm, load_classifier
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.rewards import ClassifierEngine
from tests.fixtures_models import tiny_model
from tests.models.plain import num_read, plain_rewards, plain_sums

WITHOUT = {"avx512_f": True, "neon": True}
HALVES = [("bfloat16", torch.bfloat16), ("float16", torch.float16)]


@pytest.fixture
def without_half(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: WITHOUT, raising=False)


def rounded(model, dtype: torch.dtype):
    """The model with its weights, and nothing else, rounded to a dtype and converted back."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return model


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bfloat16_stays_where_the_cpu_computes_in_it(instruction, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: WITHOUT | {instruction: True}, raising=False)
    assert cpu.has_arithmetic(torch.bfloat16)
    assert not cpu.has_arithmetic(torch.float16)
    model = load_causal_lm(TorchModel(model=str(tiny_model_dir("llama")), dtype="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.usefixtures("without_half")
@pytest.mark.parametrize(("name", "dtype"), HALVES)
def test_elsewhere_rounded_weights_are_computed_with_in_float32(name, dtype, tiny_model_dir, groups):
    engine = LogprobEngine(load_causal_lm(TorchModel(model=str(tiny_model_dir("llama")), dtype=name)))
    scores = engine.score(groups)
    assert engine.kernel == "sdpa"
    assert engine.disagreement(groups) is None
    expected = plain_sums(rounded(tiny_model("llama"), dtype), groups)
    np.testing.assert_allclose(scores.values / num_read(groups), expected / num_read(groups), atol=1e-4)
    assert not np.allclose(scores.values, plain_sums(tiny_model("llama"), groups), rtol=1e-5)


@pytest.mark.usefixtures("without_half")
def test_rewards_are_computed_in_float32_elsewhere(tiny_model_dir, groups):
    path = tiny_model_dir("llama", classifier=True)
    model = load_classifier(ClassifierReward(backend="classifier", model=str(path), dtype="bfloat16"))
    expected = plain_rewards(rounded(tiny_model("llama", classifier=True, num_labels=1), torch.bfloat16), groups)
    np.testing.assert_allclose(ClassifierEngine(model).score(groups).values, expected, atol=1e-4)


@pytest.mark.usefixtures("without_half")
def test_an_adapter_is_computed_with_in_float32_elsewhere(tiny_model_dir, tmp_path, groups):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(rounded(tiny_model("llama"), torch.bfloat16), config).eval()
    adapted.save_pretrained(tmp_path)
    expected = plain_sums(adapted.get_base_model(), groups)
    loaded = load_causal_lm(TorchModel(model=str(tiny_model_dir("llama")), dtype="bfloat16", adapter=str(tmp_path)))
    np.testing.assert_allclose(LogprobEngine(loaded).score(groups).values, expected, rtol=2e-5)


@pytest.mark.usefixtures("without_half")
def test_a_quantised_model_is_left_as_it_is():
    model = tiny_model("llama").to(torch.bfloat16)
    model.hf_quantizer = object()
    assert cpu.in_own_arithmetic(model).dtype == torch.bfloat16


def test_this_cpu_computes_in_float32():
    assert cpu.has_arithmetic(torch.float32)
    assert isinstance(cpu.has_arithmetic(torch.bfloat16), bool)
