"""vLLM's engine: real responses, the same for the same call, and the model's own."""

import importlib
import os
import sys

import numpy as np
import peft
import pytest
import torch

from pipeline.config import Generate, TorchModel
from pipeline.errors import ModelError
from pipeline.models.cpu import has_arithmetic
from pipeline.models.vllm_engine import import_vllm
from pipeline.selfplay.candidates import environment
from pipeline.selfplay.sampler import Request, open_sampler, seed_of
from pipeline.selfplay.transformers_sampler import TransformersSampler
from pipeline.selfplay.vllm_sampler import VllmSampler, engine_arguments
from tests.fixtures_models import needs_vllm, tiny_model

# vLLM's modules warn of each other's deprecations.
pytestmark = [pytest.mark.filterwarnings("ignore")]

GENERATE = Generate(max_prompt_tokens=64, max_tokens=64)


def sampling_of(**changes) -> Generate:
    return Generate().model_copy(update=changes)


SAMPLING = sampling_of(num_responses=3, temperature=1.0, top_p=0.95, max_tokens=12)
GREEDY = sampling_of(num_responses=2, temperature=0.0, top_p=0.9, max_tokens=8)
SHAPE = {"hidden_size": 128}  # heads of 32, the smallest that vLLM's CPU attention takes


def request(length: int) -> Request:
    ids = np.random.default_rng(length).integers(3, 400, length).astype(np.int32)
    return Request(prompt_ids=ids, seed=seed_of(0, str(length)))


REQUESTS = [request(length) for length in (5, 17, 40, 9, 60)]


@pytest.fixture(scope="module")
def policy(tiny_model_dir) -> TorchModel:
    return TorchModel(model=str(tiny_model_dir("llama", **SHAPE)), dtype="float32")


@pytest.fixture(scope="module")
def sampler(policy):
    # vLLM may load numba, which loads llvmlite, whose library has an attribute of any name.
    importlib.import_module("numba")
    found = VllmSampler(policy, GENERATE)
    yield found
    found.close()


@needs_vllm
def test_k_responses_to_each_request_in_their_order(sampler):
    found = sampler.sample(REQUESTS, SAMPLING)
    assert [len(responses) for responses in found] == [3] * len(REQUESTS)
    assert all(len({r.text for r in responses}) > 1 for responses in found)
    assert all(r.num_tokens == 12 for responses in found for r in responses if r.finish_reason == "length")
    assert sampler.sample(REQUESTS[::-1], SAMPLING)[::-1] == found


@needs_vllm
def test_the_same_call_gives_the_same_responses_whatever_is_beside_it(sampler):
    found = sampler.sample(REQUESTS, SAMPLING)
    assert sampler.sample(REQUESTS, SAMPLING) == found
    assert [sampler.sample([one], SAMPLING)[0] for one in REQUESTS] == found


@needs_vllm
def test_more_prompts_are_answered_than_one_step_reads(sampler):
    """One that was read in two steps would draw twice, which generators on a CPU cannot take back."""
    many = [request(60)] * 150
    few = sampling_of(num_responses=3, temperature=1.0, top_p=0.95, max_tokens=2)
    assert [len(responses) for responses in sampler.sample(many, few)] == [3] * len(many)


@needs_vllm
def test_responses_end_with_the_stop_token_or_at_max_tokens(sampler):
    sampling = sampling_of(num_responses=6, temperature=2.0, top_p=1.0, max_tokens=64)
    responses = [r for some in sampler.sample(REQUESTS[:3], sampling) for r in some]
    assert {r.finish_reason for r in responses} == {"stop", "length"}
    assert {r.num_tokens for r in responses if r.finish_reason == "length"} == {64}
    assert not any("<|im_end|>" in r.text for r in responses)


@needs_vllm
def test_temperature_0_is_the_likeliest_continuation(sampler, policy):
    other = TransformersSampler(policy, Generate(engine="transformers"))
    found = sampler.sample(REQUESTS, GREEDY)
    assert found == other.sample(REQUESTS, GREEDY)
    assert all(first == second for first, second in found)


@needs_vllm
def test_prompts_that_leave_no_room_are_refused(sampler):
    with pytest.raises(ModelError, match="max_model_len of 128"):
        sampler.sample([request(128)], SAMPLING)
    assert sampler.sample([], SAMPLING) == []


@needs_vllm
def test_torch_keeps_its_ways_to_set_threads(sampler):
    sampler.sample(REQUESTS[:1], GREEDY)
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


@needs_vllm
def test_processes_started_later_inherit_no_thread_count(sampler, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    import_vllm(environment(GENERATE), key="generate.engine", otherwise="")
    assert "OMP_NUM_THREADS" not in os.environ


@needs_vllm
def test_half_precision_is_used_where_the_cpu_has_it():
    expected = "bfloat16" if has_arithmetic(torch.bfloat16) or torch.cuda.is_available() else "float32"
    assert engine_arguments(TorchModel(model="m"), GENERATE, None)["dtype"] == expected
    other = GENERATE.model_copy(update={"dtype": "float16"})
    assert engine_arguments(TorchModel(model="m"), other, None)["dtype"] == "float16"


@needs_vllm
def test_an_adapter_changes_the_responses_as_it_does_in_transformers(policy, tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(tiny_model("llama", **SHAPE), config).save_pretrained(tmp_path)
    adapted = policy.model_copy(update={"adapter": str(tmp_path)})
    plain = TransformersSampler(policy, Generate(engine="transformers")).sample(REQUESTS, GREEDY)
    expected = TransformersSampler(adapted, Generate(engine="transformers")).sample(REQUESTS, GREEDY)
    found = open_sampler(adapted, GENERATE)
    try:
        assert found.sample(REQUESTS, GREEDY) == expected != plain
    finally:
        found.close()


@needs_vllm
def test_an_engine_argument_that_does_not_exist_says_what_to_do(policy):
    with pytest.raises(ModelError, match=r"vLLM cannot run .*engine_args"):
        VllmSampler(policy, GENERATE.model_copy(update={"engine_args": {"no_such_argument": 1}}))


def test_vllm_that_is_missing_says_how_to_install_it(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match="pip install vllm"):
        open_sampler(policy, GENERATE)


def test_the_environment_of_an_engine_is_the_users_where_it_is_set(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "8")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = environment(Generate(num_threads=3))
    assert (found["OMP_NUM_THREADS"], found["VLLM_CPU_KVCACHE_SPACE"]) == ("3", "8")
    assert found["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    assert environment(Generate())["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment(Generate(engine_args={"kv_cache_memory_bytes": 2**30}))
