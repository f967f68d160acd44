"""Rewards against the classifiers' own forward, one dialogue at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models.packing import Completion
from pipeline.models.rewards import ClassifierEngine
from tests.fixtures_models import tiny_model
from tests.models.plain import plain_rewards


def test_the_last_token_is_the_one_transformers_reads(groups):
    # The padding token (2) ends many dialogues, where it is also the end-of-turn token.
    model = tiny_model("llama", classifier=True, num_labels=1)
    ended = [[Completion(ids=np.append(c.ids, [2, 2]).astype(np.int32), start=0) for c in g] for g in groups]
    np.testing.assert_allclose(
        ClassifierEngine(model).score(ended).values, plain_rewards(model, ended), rtol=1e-4, atol=1e-5
    )


def test_encoders_are_scored_one_by_one(groups):
    model = tiny_model("bert", classifier=True, num_labels=1)
    engine = ClassifierEngine(model)
    assert engine.kernel == "naive"
    np.testing.assert_allclose(engine.score(groups).values, plain_rewards(model, groups), rtol=1e-4, atol=1e-5)


def test_a_score_output_is_preferred_to_logits(groups):
    model = tiny_model("bert", classifier=True, num_labels=3)
    plain_forward = model.forward

    def scored(*args, **kwargs):
        output = plain_forward(*args, **kwargs)
        return SimpleNamespace(score=output.logits.sum(1), logits=output.logits)

    model.forward = scored
    with torch.no_grad():
        expected = [plain_forward(torch.as_tensor(c.ids, dtype=torch.int64)[None]).logits.sum() for c in groups[0]]
    np.testing.assert_allclose(ClassifierEngine(model).score(groups[:1]).values, expected, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_more_than_one_logit_is_refused(family, groups):
    model = tiny_model(family, classifier=True, num_labels=2)
    with pytest.raises(ModelError, match="2 logits"):
        ClassifierEngine(model).score(groups)
