"""The last layer's feed-forward runs on the rows that are read, and the model stays what it was."""

import numpy as np
import pytest
import torch

from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import ROW_MULTIPLE, Completion
from pipeline.models.rewards import ClassifierEngine
from tests.fixtures_models import tiny_model
from tests.models.plain import plain_sums

PROMPT, RESPONSE = 400, 30


@pytest.fixture
def long_prompt() -> list[list[Completion]]:
    tokens = np.random.default_rng(0).integers(3, 400, PROMPT + 2 * RESPONSE).astype(np.int32)
    chosen, rejected = tokens[: PROMPT + RESPONSE], np.concatenate([tokens[:PROMPT], tokens[-RESPONSE:]])
    return [[Completion(ids=chosen, start=PROMPT), Completion(ids=rejected, start=PROMPT)]]


def rows_of_feed_forwards(model, run) -> list[int]:
    """Rows that each layer's feed-forward computes, in the order of the layers."""
    ran: list[int] = []
    inner = [m for name, m in model.named_modules() if name.endswith("mlp.down_proj")]
    hooks = [m.register_forward_hook(lambda _, args, __: ran.append(args[0].shape[1])) for m in inner]
    run()
    for hook in hooks:
        hook.remove()
    return ran


@pytest.mark.parametrize(
    ("engine", "options", "num_read"),
    [(LogprobEngine, {}, 2 * RESPONSE), (ClassifierEngine, {"classifier": True, "num_labels": 1}, 2)],
)
def test_prompts_do_not_go_through_the_last_feed_forward(engine, options, num_read, long_prompt):
    model = tiny_model("llama", **options)
    scoring = engine(model)
    *before, last = rows_of_feed_forwards(model, lambda: scoring.score(long_prompt))
    assert min(before) >= PROMPT + 2 * RESPONSE
    assert num_read <= last <= num_read + ROW_MULTIPLE


def test_a_feed_forward_that_looks_at_other_rows_is_not_trimmed(groups, caplog):
    model = tiny_model("llama")
    last = model.base_model.layers[-1].mlp

    def with_the_first_row(states):
        return type(last).forward(last, states + states[:, :1] * 0.1)

    # The first row of a step is that of one sequence only, so no packed step is right, trimmed or not.
    last.forward = with_the_first_row
    expected = plain_sums(model, groups)
    engine = LogprobEngine(model)
    assert engine.kernel == "naive"
    assert "one sequence at a time" in caplog.text
    np.testing.assert_allclose(engine.score(groups).values, expected, rtol=2e-5)


def test_a_feed_forward_that_takes_more_than_states_runs_untrimmed(groups, caplog):
    model = tiny_model("llama")
    expected = plain_sums(model, groups)
    last = model.base_model.layers[-1].mlp
    seen = []

    def by_all_rows(states):
        if seen and states.shape[1] != seen[-1]:
            raise ValueError("not every row is here")
        return type(last).forward(last, states)

    last.forward = by_all_rows
    model.base_model.layers[-1].self_attn.register_forward_hook(lambda _, __, given: seen.append(given[0].shape[1]))
    engine = LogprobEngine(model)
    assert engine.kernel == "sdpa"
    assert "not in the fastest way" in caplog.text
    np.testing.assert_allclose(engine.score(groups).values, expected, rtol=2e-5)


def test_the_models_own_forward_is_left_as_it_was(long_prompt):
    ids = torch.as_tensor(long_prompt[0][0].ids, dtype=torch.int64)[None]
    model = tiny_model("llama")
    with torch.no_grad():
        before = model(ids).logits
        for _ in range(2):
            LogprobEngine(model).score(long_prompt)
        torch.testing.assert_close(model(ids).logits, before, rtol=0.0, atol=0.0)
