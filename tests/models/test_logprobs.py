"""The engine against transformers' own forward, one sequence at a time, on tiny random models of many families."""

import logging

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models.backbone import Backbone
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import Completion
from tests.fixtures_models import tiny_model

PACKED_FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "granite", "cohere", "gpt2"]
NAIVE_FAMILIES = ["gpt_oss", "mamba"]


def plain_sums(model, groups: list[list[Completion]], attention: str = "eager") -> np.ndarray:
    """Log-softmax over the whole vocabulary of each sequence's own forward, in float64."""
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(attention)
    sums = []
    for completion in (c for group in groups for c in group):
        ids = torch.as_tensor(completion.ids, dtype=torch.int64)
        with torch.no_grad():
            logp = model(ids[None]).logits[0].double().log_softmax(-1)
        targets = ids[completion.start :]
        sums.append(logp[completion.start - 1 : -1].gather(1, targets[:, None]).sum().item())
    return np.asarray(sums)


@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_packed_sums_equal_the_plain_forward(family, groups):
    model = tiny_model(family)
    expected = plain_sums(model, groups)
    engine = LogprobEngine(model, token_budget=200)
    scores = engine.score(groups)
    assert engine.kernel == "sdpa"
    np.testing.assert_allclose(scores.sum_logp, expected, rtol=2e-5)
    assert scores.sum_logp.dtype == np.float64
    assert scores.num_tokens.tolist() == [len(c.ids) - c.start for group in groups for c in group]


@pytest.mark.parametrize("family", NAIVE_FAMILIES)
def test_attention_that_cannot_be_packed_is_scored_one_by_one_with_a_warning(family, groups, caplog):
    model = tiny_model(family)
    expected = plain_sums(model, groups)
    with caplog.at_level(logging.WARNING):
        engine = LogprobEngine(model)
    assert engine.kernel == "naive"
    assert "one sequence at a time" in caplog.text
    np.testing.assert_allclose(engine.score(groups).sum_logp, expected, rtol=2e-5)


def test_a_head_that_does_more_than_it_says_is_noticed(groups, caplog):
    model = tiny_model("llama")
    plain_forward = model.forward

    def halved(*args, **kwargs):
        output = plain_forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = halved
    expected = plain_sums(model, groups)
    engine = LogprobEngine(model)
    assert engine.kernel == "naive"
    np.testing.assert_allclose(engine.score(groups).sum_logp, expected, rtol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_do_not_depend_on_order_budget_company_or_threads(family, dtype, groups):
    model = tiny_model(family).to(dtype)
    expected = {id(group): [] for group in groups}
    engine = LogprobEngine(model, token_budget=1_000_000)
    sums = np.split(engine.score(groups).sum_logp, np.cumsum([len(g) for g in groups])[:-1])
    expected = dict(zip(range(len(groups)), sums, strict=True))
    random = np.random.default_rng(0)
    for budget, threads in [(1, 1), (100, 2), (300, 1), (1_000, 2)]:
        torch.set_num_threads(threads)
        order = random.permutation(len(groups))
        shuffled = LogprobEngine(model, token_budget=budget).score([groups[i] for i in order]).sum_logp
        np.testing.assert_array_equal(shuffled, np.concatenate([expected[i] for i in order]))


def test_bfloat16_stays_within_its_noise_of_float32(groups):
    model = tiny_model("llama", seed=3)
    exact = LogprobEngine(model).score(groups)
    half = LogprobEngine(model.to(torch.bfloat16)).score(groups)
    difference = np.abs(half.sum_logp - exact.sum_logp) / exact.num_tokens
    assert difference.max() < 0.05
    assert np.sqrt(np.mean(difference**2)) < 0.02


def test_a_lora_adapter_scores_as_in_its_own_forward(groups):
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama")
    without = LogprobEngine(base).score(groups).sum_logp
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    model.eval()
    expected = plain_sums(model.get_base_model(), groups)
    engine = LogprobEngine(model)
    scores = engine.score(groups).sum_logp
    assert engine.kernel == "sdpa"
    np.testing.assert_allclose(scores, expected, rtol=2e-5)
    assert not np.allclose(scores, without, rtol=1e-3)


def test_head_bias_counts(groups):
    model = tiny_model("llama", tie_word_embeddings=False)
    head = torch.nn.Linear(64, 512, bias=True)
    torch.nn.init.normal_(head.bias)
    model.set_output_embeddings(head.requires_grad_(requires_grad=False))
    expected = plain_sums(model, groups)
    engine = LogprobEngine(model)
    assert engine.kernel == "sdpa"
    np.testing.assert_allclose(engine.score(groups).sum_logp, expected, rtol=2e-5)


def test_no_groups_give_no_scores_and_empty_responses_give_zero():
    engine = LogprobEngine(tiny_model("llama"))
    assert engine.score([]).sum_logp.shape == (0,)
    empty = engine.score([[Completion(ids=np.arange(5, dtype=np.int32), start=5)]])
    assert (empty.sum_logp.tolist(), empty.num_tokens.tolist()) == ([0.0], [0])


def test_a_response_that_nothing_predicts_is_refused():
    engine = LogprobEngine(tiny_model("llama"))
    with pytest.raises(ModelError, match="no token before the response"):
        engine.score([[Completion(ids=np.arange(5, dtype=np.int32), start=0)]])


def test_a_full_gpu_halves_the_steps_and_loses_no_group(groups):
    backbone = Backbone(tiny_model("llama"), token_budget=400)
    done = []

    def run(some):
        if len(some) > 2:
            raise torch.cuda.OutOfMemoryError
        done.extend(some)

    backbone.steps(groups, run)
    assert done == groups

    def never(some):
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(ModelError, match="does not fit the GPU"):
        backbone.steps(groups, never)
