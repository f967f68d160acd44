"""`deterministic`: one shape for every forward, whatever is scored together, and the numbers of the plain forward."""

import numpy as np
import pytest
import torch

from pipeline.config import ClassifierReward, TorchModel
from pipeline.errors import ModelError
from pipeline.models.fingerprints import model_fingerprint
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import Completion
from pipeline.models.rewards import ClassifierEngine
from tests.fixtures_models import tiny_model
from tests.models.plain import num_read, plain_rewards, plain_sums
from tests.models.test_memory import hold_at_most

BUDGET = 256
LABELS = {"classifier": True, "num_labels": 1}


def shapes_of_products(model, run) -> set[tuple[str, int]]:
    """Every linear layer of the decoder with the numbers of rows that it multiplied."""
    ran: set[tuple[str, int]] = set()
    hooks = [
        module.register_forward_hook(lambda _, args, __, name=name: ran.add((name, args[0].shape[-2])))
        for name, module in model.base_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return ran


@pytest.mark.parametrize(("engine", "options"), [(LogprobEngine, {}), (ClassifierEngine, LABELS)])
def test_every_forward_has_one_shape_whatever_is_scored_together(engine, options, groups):
    model, groups = tiny_model("llama", **options), groups[:4]
    scoring = engine(model, token_budget=BUDGET, deterministic=True)
    together = shapes_of_products(model, lambda: scoring.score(groups))
    alone = shapes_of_products(model, lambda: [scoring.score([group]) for group in groups])
    assert together == alone
    assert {rows for _, rows in together} == {BUDGET}


def test_a_longer_group_takes_a_multiple_of_the_budget():
    model = tiny_model("llama")
    ids = np.random.default_rng(0).integers(3, 400, BUDGET + 10).astype(np.int32)
    engine = LogprobEngine(model, token_budget=BUDGET, deterministic=True)
    ran = shapes_of_products(model, lambda: engine.score([[Completion(ids=ids, start=200)]]))
    assert {rows for _, rows in ran} == {2 * BUDGET}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_sums_equal_the_plain_forward(family, groups):
    model = tiny_model(family)
    expected = plain_sums(model, groups)
    engine = LogprobEngine(model, token_budget=BUDGET, deterministic=True)
    assert engine.kernel == "sdpa"
    np.testing.assert_allclose(engine.score(groups).values, expected, rtol=2e-5)


def test_a_model_in_a_config_is_run_so(tiny_model_dir, groups):
    options = {"token_budget": BUDGET, "deterministic": True}
    engine = LogprobEngine.load(TorchModel(model=str(tiny_model_dir("llama")), dtype="float32", **options))
    model = engine._backbone.model
    assert {rows for _, rows in shapes_of_products(model, lambda: engine.score(groups))} == {BUDGET}
    path = str(tiny_model_dir("llama", classifier=True))
    rewards = ClassifierEngine.load(ClassifierReward(backend="classifier", model=path, dtype="float32", **options))
    model = rewards._backbone.model
    expected = plain_rewards(tiny_model("llama", **LABELS), groups)
    assert {rows for _, rows in shapes_of_products(model, lambda: rewards.score(groups))} == {BUDGET}
    np.testing.assert_allclose(rewards.score(groups).values, expected, rtol=1e-4, atol=1e-5)


def test_a_budget_that_does_not_fit_memory_is_an_error_at_the_start():
    model = tiny_model("llama")
    hold_at_most(model, BUDGET - 1)
    with pytest.raises(ModelError, match=r"256 tokens does not fit memory.*Lower token_budget"):
        LogprobEngine(model, token_budget=BUDGET, deterministic=True)


def test_a_full_memory_is_an_error_where_steps_must_keep_their_shape(groups):
    model = tiny_model("llama")
    engine = LogprobEngine(model, token_budget=BUDGET, deterministic=True)
    hold_at_most(model, BUDGET - 1)
    with pytest.raises(ModelError, match=r"256 tokens does not fit memory.*Lower token_budget"):
        engine.score(groups)


def test_a_group_beyond_the_budget_costs_no_other_row(groups):
    model, groups = tiny_model("llama"), groups[:4]
    expected = LogprobEngine(model, token_budget=BUDGET, deterministic=True).score(groups).values
    engine = LogprobEngine(model, token_budget=BUDGET, deterministic=True)
    hold_at_most(model, BUDGET)
    ids = np.random.default_rng(0).integers(3, 400, 2 * BUDGET).astype(np.int32)
    scores = engine.score([[Completion(ids=ids, start=200)], *groups])
    assert scores.left_out == {0: "does_not_fit_memory"}
    np.testing.assert_array_equal(scores.values[1:], expected)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_layers_rounded_to_8_bits_keep_the_shape(compiled, groups):
    model, groups = tiny_model("llama"), groups[:4]
    exact = LogprobEngine(tiny_model("llama")).score(groups)
    engine = LogprobEngine(model, token_budget=BUDGET, fp8=True, compiled=compiled, deterministic=True)
    together = engine.score(groups).values
    difference = np.abs(together - exact.values) / num_read(groups)
    assert 0.0 < np.median(difference) < 0.3
    alone = np.concatenate([engine.score([group]).values for group in groups])
    np.testing.assert_array_equal(alone, together)


def test_scores_of_one_shape_are_not_mixed_with_others(tiny_model_dir):
    model = TorchModel(model=str(tiny_model_dir("llama")))
    fixed = [model.model_copy(update={"deterministic": True, "token_budget": budget}) for budget in (None, 256, 512)]
    prints = [str(model_fingerprint(each)) for each in (model, *fixed)]
    assert len(set(prints)) == 4
    larger = model.model_copy(update={"token_budget": 512})
    assert model_fingerprint(larger) == model_fingerprint(model)
