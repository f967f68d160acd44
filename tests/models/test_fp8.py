"""8-bit layers: the rounding by its definition, what is rounded and when."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import TorchModel
from pipeline.errors import ModelError
from pipeline.models import fp8
from pipeline.models.fingerprints import model_fingerprint
from pipeline.models.fp8 import Fp8Linear, use_fp8
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.rewards import ClassifierEngine
from pipeline.rewards.classifier import ClassifierScorer
from pipeline.steps.reward_stage import RewardPairs
from pipeline.steps.score_stages import pair_groups
from tests.fixtures_models import tiny_model
from tests.models.pairs import demo_pairs, tokenized_pairs


def e4m3_values() -> np.ndarray:
    """Every finite number of four exponent and three mantissa bits: bias 7, no infinity, the last code is NaN."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    positive = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.unique(np.concatenate([-positive, positive]))


def rounded(rows: np.ndarray) -> np.ndarray:
    """Rows as e4m3 holds them with a scale of their own, by the nearest of its values."""
    scale = np.abs(rows).max(axis=1, keepdims=True) / 448.0
    values = e4m3_values()
    middles = (values[1:] + values[:-1]) / 2
    return values[np.searchsorted(middles, rows / scale)] * scale


def rounded_layers(model) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Fp8Linear)]


def test_a_layer_multiplies_what_e4m3_holds_of_weight_and_inputs():
    random = np.random.default_rng(1)
    weight, inputs = random.normal(size=(32, 48)), random.normal(size=(7, 48)) * np.logspace(-3, 3, 7)[:, None]
    linear = torch.nn.Linear(48, 32).double().requires_grad_(requires_grad=False)
    linear.weight.copy_(torch.from_numpy(weight))
    found = Fp8Linear(linear.float())(torch.from_numpy(inputs).float()[None])
    expected = rounded(inputs.astype(np.float32)) @ rounded(weight.astype(np.float32)).T + linear.bias.numpy()
    assert found.shape == (1, 7, 32)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(axis=1).min())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(exponent=st.integers(-4, 3), seed=st.integers(0, 2**16))
def test_no_row_overflows_and_none_is_off_by_more_than_half_a_step(dtype, exponent, seed):
    rows = (torch.randn(64, 32, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent).to(dtype)
    found, scale = fp8._rounded(rows)
    largest = rows.float().abs().amax(dim=1, keepdim=True)
    error = (found.float() * scale - rows.float()).abs() / largest
    assert error.max() <= (16 / 448) + 2**-8  # NaN would not be


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_token_is_rounded_alone_and_keeps_its_dtype(dtype):
    layer = Fp8Linear(torch.nn.Linear(64, 32, dtype=dtype).requires_grad_(requires_grad=False))
    inputs = torch.randn(5, 64, dtype=dtype)
    scales = torch.tensor([[1.0], [1e3], [1.0], [1e-3], [0.0]], dtype=dtype)
    found = layer(inputs * scales)
    assert found.dtype == dtype
    assert torch.equal(found[::2], layer(inputs * scales.sqrt())[::2])
    assert torch.equal(found[4], layer.bias)


def test_linear_layers_of_the_decoder_are_rounded_and_nothing_else():
    model = tiny_model("mixtral")
    use_fp8(model)
    names = rounded_layers(model)
    assert {name.rsplit(".", 1)[-1] for name in names} >= {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert not [name for name in names if "gate" in name.split(".") or "lm_head" in name]
    assert type(model.lm_head) is torch.nn.Linear


def test_an_adapter_keeps_its_dtype_and_its_base_is_rounded():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=16, target_modules=["q_proj"])).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(1))
    adapted.requires_grad_(requires_grad=False)
    groups = pairs_of(tokenized_pairs(demo_pairs(4)))
    engine = LogprobEngine(adapted, fp8=True)
    own, found = LogprobEngine(adapted).score(groups).values, engine.score(groups).values
    assert [name for name in rounded_layers(adapted) if name.endswith("q_proj.base_layer")]
    assert not [name for name in rounded_layers(adapted) if "lora_" in name]
    assert not np.array_equal(found, own)
    np.testing.assert_allclose(found, own, rtol=0.1)


def pairs_of(table):
    return pair_groups(table, np.arange(table.num_rows))


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel has no linear layers.*Remove fp8"):
        use_fp8(tiny_model("gpt2"))


def test_an_old_torch_is_named(monkeypatch):
    monkeypatch.delattr(fp8.F, "scaled_mm")
    with pytest.raises(ModelError, match=r"fp8 needs torch 2\.10.*this is \d"):
        LogprobEngine(tiny_model("llama"), fp8=True)


def test_rewards_are_read_from_a_rounded_decoder_too():
    table = tokenized_pairs(demo_pairs(4))
    own, found = (
        RewardPairs(
            ClassifierScorer(ClassifierEngine(tiny_model("llama", classifier=True, num_labels=1), fp8=fp8)),
            reads_ids=True,
        )(table)
        for fp8 in (False, True)
    )
    first, second = (np.asarray(each["reward_chosen"]) for each in (own, found))
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(second, first, rtol=0.5)


def test_packed_steps_are_compared_before_anything_is_rounded():
    groups = pairs_of(tokenized_pairs(demo_pairs(4)))
    engine = LogprobEngine(tiny_model("llama"), fp8=True)
    assert engine.disagreement(groups) is None
    assert not rounded_layers(engine._backbone.model)
    engine.score(groups)
    assert len(rounded_layers(engine._backbone.model)) == 3 * 7


def test_the_fingerprint_tells_fp8(tiny_model_dir):
    plain = TorchModel(model=str(tiny_model_dir("llama")), dtype="float32")
    rounded_too = plain.model_copy(update={"fp8": True})
    assert model_fingerprint(rounded_too) == {**model_fingerprint(plain), "fp8": True}
