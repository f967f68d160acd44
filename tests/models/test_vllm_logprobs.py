"""vLLM as a scorer: the sums of our own engine on the same tokens, in order, and nothing made up where it has none."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.config import TorchModel, VllmModel
from pipeline.errors import ModelError
from pipeline.models.fingerprints import model_fingerprint
from pipeline.models.loading import load_causal_lm
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import Completion
from pipeline.models.vllm_engine import environment
from pipeline.models.vllm_logprobs import VllmLogprobEngine, response_logp
from pipeline.steps.score_stages import ScorePairs
from tests.fixtures_models import needs_vllm
from tests.models.plain import num_read

# vLLM's modules warn of each other's deprecations.
pytestmark = [pytest.mark.filterwarnings("ignore")]

SHAPE = {"hidden_size": 128}  # heads of 32, the smallest that vLLM's CPU attention takes
MAX_LENGTH = 120  # that of the longest sequence of the groups


def section(model, **changes) -> VllmModel:
    return VllmModel(backend="vllm", model=str(model), dtype="float32", **changes)


@pytest.fixture(scope="module")
def policy(tiny_model_dir):
    return tiny_model_dir("llama", **SHAPE)


@pytest.fixture(scope="module")
def engine(policy):
    # Sequences longer than a step are read in several.
    found = VllmLogprobEngine(section(policy, token_budget=64), MAX_LENGTH)
    yield found
    found.close()


@pytest.fixture(scope="module")
def ours(policy):
    return LogprobEngine(load_causal_lm(TorchModel(model=str(policy), dtype="float32")))


def assert_equal_means(got, expected, groups):
    assert got.dtype == np.float64
    assert (np.abs(got - expected) / np.maximum(1, num_read(groups))).max() < 1e-4


@needs_vllm
def test_sums_are_those_of_our_own_engine(engine, ours, groups):
    assert max(len(c.ids) for group in groups for c in group) == MAX_LENGTH
    found = engine.score(groups)
    assert_equal_means(found.values, ours.score(groups).values, groups)
    assert found.left_out == {}
    assert engine.disagreement(groups) is None


@needs_vllm
def test_sums_keep_the_order_of_the_groups_and_repeat(engine, groups):
    forward, backward = engine.score(groups), engine.score([group[::-1] for group in groups[::-1]])
    np.testing.assert_allclose(backward.values[::-1], forward.values, atol=1e-3)
    assert engine.score(groups).values.tolist() == forward.values.tolist()


@needs_vllm
def test_a_row_longer_than_the_model_is_left_out_and_the_others_are_not(engine, ours, groups):
    ids = np.arange(3, 4 + MAX_LENGTH, dtype=np.int32)
    long, whole = Completion(ids=ids, start=4), Completion(ids=ids[:-1], start=4)
    found = engine.score([[long, whole], *groups])
    assert found.left_out == {0: "longer_than_model"}
    assert np.isnan(found.values[0])
    kept = [[whole], *groups]
    assert_equal_means(found.values[1:], ours.score(kept).values, kept)


@needs_vllm
def test_a_model_with_fewer_positions_than_the_config_allows_sets_the_limit(tiny_model_dir):
    small = VllmLogprobEngine(section(tiny_model_dir("llama", **SHAPE, max_position_embeddings=32)), MAX_LENGTH)
    try:
        rows = [[Completion(ids=np.arange(3, 3 + n, dtype=np.int32), start=2)] for n in (31, 32, 33)]
        assert small.score(rows).left_out == dict.fromkeys((1, 2), "longer_than_model")
    finally:
        small.close()


@needs_vllm
def test_no_groups_give_no_scores_and_empty_responses_give_zero(engine):
    assert engine.score([]).values.shape == (0,)
    found = engine.score([[Completion(ids=np.arange(3, 9, dtype=np.int32), start=6)]])
    assert (found.values.tolist(), found.left_out) == ([0.0], {})


@needs_vllm
def test_a_response_that_nothing_predicts_is_an_error(engine):
    with pytest.raises(ModelError, match="no token before the response"):
        engine.score([[Completion(ids=np.arange(3, 9, dtype=np.int32), start=0)]])


@needs_vllm
def test_an_engine_argument_that_does_not_exist_says_what_to_do(policy):
    with pytest.raises(ModelError, match=r"vLLM cannot run .*engine_args.*backend: torch"):
        VllmLogprobEngine(section(policy, engine_args={"no_such_argument": 1}), MAX_LENGTH)


@pytest.mark.soak
@needs_vllm
def test_a_model_split_between_two_processes_gives_the_same_sums(policy, ours, groups):
    split = section(policy, num_gpus=0, engine_args={"tensor_parallel_size": 2}, token_budget=64)
    found = VllmLogprobEngine(split, MAX_LENGTH)
    try:
        assert_equal_means(found.score(groups).values, ours.score(groups).values, groups)
    finally:
        found.close()


def test_vllm_that_is_missing_says_how_to_install_it(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match=r"backend: vllm needs vLLM.*pip install vllm.*backend: torch"):
        VllmLogprobEngine(section(policy), MAX_LENGTH)


SEQUENCE = Completion(ids=np.asarray([5, 6, 7, 8], dtype=np.int32), start=2)
GIVEN = [None, *({token: SimpleNamespace(logprob=-float(token))} for token in (6, 7, 8))]


def test_only_tokens_of_the_response_are_summed():
    assert response_logp(GIVEN, SEQUENCE) == -15.0


@pytest.mark.parametrize(
    "given", [None, GIVEN[1:], [*GIVEN[:3], None], [*GIVEN[:3], {9: SimpleNamespace(logprob=-1.0)}]]
)
def test_an_answer_that_lacks_tokens_is_never_summed(given):
    with pytest.raises(ModelError, match="another version of vLLM"):
        response_logp(given, SEQUENCE)


def test_the_stage_closes_its_engine():
    closed = []
    ScorePairs(SimpleNamespace(close=lambda: closed.append(1)), "policy").close()
    ScorePairs(SimpleNamespace(), "policy").close()
    assert closed == [1]


def test_the_fingerprint_tells_the_engine_and_what_it_computes_but_not_the_layout(policy):
    plain = model_fingerprint(TorchModel(model=str(policy), dtype="float32"))
    found = model_fingerprint(section(policy))
    assert found == {**plain, "backend": "vllm", "engine_args": {}}
    split = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.8}
    assert model_fingerprint(section(policy, num_gpus=2, engine_args=split)) == found
    eight_bits = {"engine_args": {"quantization": "fp8"}}
    assert model_fingerprint(section(policy, **eight_bits)) == {**found, **eight_bits}


def test_the_environment_takes_threads_and_cache_of_the_section(policy, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    found = environment(3, {})
    assert (found["OMP_NUM_THREADS"], found["VLLM_CPU_KVCACHE_SPACE"]) == ("3", "1")
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment(1, {"kv_cache_memory_bytes": 2**30})
