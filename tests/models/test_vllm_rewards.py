"""vLLM as a reward model: the logits of our own engine on the same tokens, in order, and no sigmoid on them."""

import numpy as np
import pytest

from pipeline.config import ClassifierReward, VllmReward
from pipeline.models.packing import Completion
from pipeline.models.rewards import ClassifierEngine
from pipeline.models.vllm_rewards import VllmRewardEngine

# vLLM's modules warn of each other's deprecations.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
    pytest.mark.skipif("not __import__('importlib.util').util.find_spec('vllm')", reason="no vLLM"),
]

MAX_LENGTH = 120  # that of the longest sequence of the groups


@pytest.fixture(scope="module")
def directory(tiny_model_dir):
    # Heads of 32, the smallest that vLLM's CPU attention takes.
    return str(tiny_model_dir("llama", classifier=True, seed=3, hidden_size=128))


@pytest.fixture(scope="module")
def engine(directory):
    section = VllmReward(
        backend="vllm", model=directory, dtype="float32", num_gpus=0, token_budget=64, max_length=MAX_LENGTH
    )
    found = VllmRewardEngine(section)
    yield found
    found.close()


def test_rewards_are_those_of_our_own_engine_in_any_order(engine, directory, groups):
    ours = ClassifierEngine.load(ClassifierReward(backend="classifier", model=directory, dtype="float32"))
    expected, found = ours.score(groups).values, engine.score(groups)
    np.testing.assert_allclose(found.values, expected, atol=1e-4)
    assert np.ptp(expected) > 1.0
    assert found.left_out == {}
    backward = engine.score([group[::-1] for group in groups[::-1]])
    np.testing.assert_allclose(backward.values[::-1], expected, atol=1e-4)
    assert engine.score([]).values.shape == (0,)


def test_a_dialogue_longer_than_the_model_is_left_out_and_the_others_are_not(engine):
    long, whole = (Completion(ids=np.arange(3, 3 + n, dtype=np.int32), start=0) for n in (MAX_LENGTH + 1, MAX_LENGTH))
    found = engine.score([[long, whole]])
    assert found.left_out == {0: "longer_than_model"}
    assert np.isfinite(found.values).tolist() == [False, True]
