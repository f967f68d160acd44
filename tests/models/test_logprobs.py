"""What the log-probability engine makes of heads and responses out of the ordinary."""

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import Completion
from tests.fixtures_models import tiny_model
from tests.models.plain import num_read, plain_sums


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
    np.testing.assert_allclose(engine.score(groups).values, expected, rtol=2e-5)


def test_bfloat16_stays_within_its_noise_of_float32(groups):
    model = tiny_model("llama", seed=3)
    exact = LogprobEngine(model).score(groups)
    half = LogprobEngine(model.to(torch.bfloat16)).score(groups)
    difference = np.abs(half.values - exact.values) / num_read(groups)
    assert difference.max() < 0.05
    assert np.sqrt(np.mean(difference**2)) < 0.02


def test_no_groups_give_no_scores_and_empty_responses_give_zero():
    engine = LogprobEngine(tiny_model("llama"))
    assert engine.score([]).values.shape == (0,)
    empty = engine.score([[Completion(ids=np.arange(5, dtype=np.int32), start=5)]])
    assert empty.values.tolist() == [0.0]


def test_a_response_that_nothing_predicts_is_refused():
    engine = LogprobEngine(tiny_model("llama"))
    with pytest.raises(ModelError, match="no token before the response"):
        engine.score([[Completion(ids=np.arange(5, dtype=np.int32), start=0)]])
