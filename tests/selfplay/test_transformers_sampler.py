"""The engine of transformers alone: its draws are the model's distribution, and a response is its request's alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Generate, TorchModel
from pipeline.errors import ConfigError, ModelError
from pipeline.selfplay.candidates import environment
from pipeline.selfplay.sampler import Request, open_sampler, seed_of
from pipeline.selfplay.transformers_sampler import TransformersSampler, draw
from tests.fixtures_models import tiny_model


def sampling_of(**changes) -> Generate:
    return Generate().model_copy(update=changes)


SAMPLING = sampling_of(num_responses=3, temperature=1.0, top_p=1.0, max_tokens=12)
GENERATE = Generate(engine="transformers", dtype="float32")


def request(length: int, seed: int = 0) -> Request:
    ids = np.random.default_rng(length).integers(3, 400, length).astype(np.int32)
    return Request(prompt_ids=ids, seed=seed_of(seed, str(length)))


REQUESTS = [request(length) for length in (5, 17, 5, 9, 40)]


@pytest.fixture(scope="module")
def sampler(tiny_model_dir) -> TransformersSampler:
    return TransformersSampler(TorchModel(model=str(tiny_model_dir("llama"))), GENERATE)


def test_the_same_call_gives_the_same_responses(sampler):
    assert sampler.sample(REQUESTS, SAMPLING) == sampler.sample(REQUESTS, SAMPLING)


def test_responses_do_not_depend_on_the_requests_beside_them(sampler):
    together = sampler.sample(REQUESTS, SAMPLING)
    alone = [sampler.sample([one], SAMPLING)[0] for one in REQUESTS]
    backwards = sampler.sample(REQUESTS[::-1], SAMPLING)[::-1]
    assert together == alone == backwards


def test_each_request_has_k_responses_that_differ(sampler):
    for responses in sampler.sample(REQUESTS, SAMPLING):
        assert len(responses) == 3
        assert len({response.text for response in responses}) > 1


def test_other_seeds_give_other_responses(sampler):
    assert sampler.sample([request(9, seed=1)], SAMPLING) != sampler.sample([request(9, seed=2)], SAMPLING)


def test_temperature_0_is_the_likeliest_continuation(sampler, tiny_model_dir):
    greedy = sampling_of(num_responses=2, temperature=0.0, top_p=0.5, max_tokens=6)
    [first, second] = sampler.sample([REQUESTS[1]], greedy)[0]
    ids = torch.tensor(REQUESTS[1].prompt_ids)[None].long()
    whole = tiny_model("llama").generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
    expected = sampler._decoder.response(whole, stopped=whole[-1] == 2)
    assert first == second == expected


def test_a_response_ends_with_the_stop_token_or_at_max_tokens(sampler):
    sampling = sampling_of(num_responses=8, temperature=4.0, top_p=1.0, max_tokens=150)
    responses = [r for some in sampler.sample(REQUESTS[:3], sampling) for r in some]
    assert {r.finish_reason for r in responses} == {"stop", "length"}
    assert all(r.num_tokens == 150 for r in responses if r.finish_reason == "length")
    assert all(r.num_tokens <= 150 for r in responses)
    assert not any("<|im_end|>" in r.text for r in responses)


def test_responses_stop_where_the_models_positions_end(sampler):
    room = 4
    long = Request(prompt_ids=np.full(1024 - room, 7, np.int32), seed=1)
    assert max(r.num_tokens for r in sampler.sample([long], SAMPLING)[0]) <= room
    with pytest.raises(ModelError, match="1024 tokens leaves no room"):
        sampler.sample([Request(prompt_ids=np.full(1024, 7, np.int32), seed=1)], SAMPLING)


@given(st.integers(0, 2**32), st.floats(0.2, 3.0), st.floats(0.05, 1.0))
def test_draws_are_of_the_nucleus(seed, temperature, top_p):
    random = np.random.default_rng(seed)
    logits = torch.tensor(random.normal(size=(4, 20)) * 3, dtype=torch.float32)
    sampling = sampling_of(num_responses=1, temperature=temperature, top_p=top_p, max_tokens=1)
    tokens = draw(logits, random.random(4), sampling)
    for row, token in zip(torch.softmax(logits / temperature, -1).double(), tokens.tolist(), strict=True):
        above = row[row > row[token]].sum()
        assert float(above) < top_p + 1e-6


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampling = sampling_of(num_responses=1, temperature=1.0, top_p=0.9, max_tokens=1)
    uniforms = (np.arange(9500) + 0.5) / 9500
    tokens = draw(probabilities.log().expand(9500, -1), uniforms, sampling)
    assert torch.bincount(tokens, minlength=4).tolist() == pytest.approx([5000, 3000, 1500, 0], abs=2)


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(ModelError, match="not finite"):
        draw(torch.full((1, 4), torch.nan), np.zeros(1), SAMPLING)


def test_a_model_without_a_cache_to_repeat_is_refused(tiny_model_dir):
    mamba = TransformersSampler(TorchModel(model=str(tiny_model_dir("mamba"))), GENERATE)
    with pytest.raises(ModelError, match="vllm"):
        mamba.sample(REQUESTS[:1], SAMPLING)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt2", "mistral"])
def test_other_families_continue_as_their_own_generate_does(tiny_model_dir, family):
    found = TransformersSampler(TorchModel(model=str(tiny_model_dir(family))), GENERATE)
    greedy = sampling_of(num_responses=2, temperature=0.0, top_p=1.0, max_tokens=8)
    [first, _] = found.sample([REQUESTS[4]], greedy)[0]
    ids = torch.tensor(REQUESTS[4].prompt_ids)[None].long()
    whole = tiny_model(family).generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    assert first == found._decoder.response(whole, stopped=whole[-1] == 2)


def test_engine_arguments_are_refused_without_vllm():
    generate = Generate(engine="transformers", engine_args={"tensor_parallel_size": 2})
    with pytest.raises(ConfigError, match="engine_args"):
        open_sampler(TorchModel(model="m"), generate)
    assert environment(generate) == {}
