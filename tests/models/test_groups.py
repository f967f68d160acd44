"""Groups of many completions of one prompt, as self-play draws them: shared wherever they start alike."""

import numpy as np
import pytest

from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import BLOCK_ROWS, Completion, num_packed_tokens, response_step, sharing_order
from pipeline.models.rewards import ClassifierEngine
from tests.fixtures_models import tiny_model
from tests.models.plain import plain_rewards, plain_sums
from tests.models.test_memory import hold_at_most


def sampled(num_completions: int) -> list[Completion]:
    """Completions of one prompt: most share an opening with an earlier one, some were drawn twice."""
    random = np.random.default_rng(num_completions)
    prompt = random.integers(3, 400, 40).astype(np.int32)
    made = [Completion(ids=np.concatenate([prompt, random.integers(3, 400, 12).astype(np.int32)]), start=40)]
    while len(made) < num_completions:
        earlier = made[random.integers(len(made))].ids
        kept = int(random.integers(40, len(earlier) + 1))
        rest = random.integers(3, 400, random.integers(0, 15)).astype(np.int32)
        made.append(Completion(ids=np.concatenate([earlier[:kept], rest]), start=40))
    return made


def distinct_prefixes(group: list[Completion]) -> int:
    return len({tuple(c.ids[:end].tolist()) for c in group for end in range(1, len(c.ids) + 1)})


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("num_completions", [2, 5, 64])
def test_completions_of_one_prompt_score_as_alone(family, num_completions):
    group = sampled(num_completions)
    model = tiny_model(family)
    expected = plain_sums(model, [group])
    engine = LogprobEngine(model)
    assert engine.kernel == "sdpa"
    np.testing.assert_allclose(engine.score([group]).values, expected, rtol=2e-5)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_64_dialogues_of_one_prompt_get_the_rewards_they_get_alone(family):
    group = sampled(64)
    model = tiny_model(family, classifier=True, num_labels=1)
    expected = plain_rewards(model, [group])
    engine = ClassifierEngine(model)
    assert engine.kernel == "sdpa"
    np.testing.assert_allclose(engine.score([group]).values, expected, rtol=1e-4, atol=1e-5)


def test_a_step_takes_one_row_for_every_distinct_prefix():
    group = sampled(64)
    step = response_step([group])
    assert num_packed_tokens(group) == distinct_prefixes(group) < sum(len(c.ids) - 40 for c in group) + 40
    assert sum(segment.num_queries for segment in step.segments) == distinct_prefixes(group)
    assert len(step.rows) <= distinct_prefixes(group)


def test_a_pair_that_starts_alike_shares_beyond_the_prompt():
    random = np.random.default_rng(0)
    prompt, opening, chosen, rejected = (random.integers(3, 400, n).astype(np.int32) for n in (20, 15, 10, 12))
    pair = [Completion(ids=np.concatenate([prompt, opening, end]), start=20) for end in (chosen, rejected)]
    model = tiny_model("llama")
    expected = plain_sums(model, [pair])
    assert num_packed_tokens(pair) == 20 + 15 + 10 + 12
    np.testing.assert_allclose(LogprobEngine(model).score([pair]).values, expected, rtol=2e-5)


def pairs_of_prompts(num_prompts: int, num_pairs: int, prompt_tokens: int) -> list[list[Completion]]:
    """Pairs of some prompts, those of one prompt apart; some repeat a response or a whole pair."""
    random = np.random.default_rng(num_pairs)

    def tokens(low: int, high: int) -> np.ndarray:
        return random.integers(3, 400, random.integers(low, high)).astype(np.int32)

    system = tokens(70, 71)
    prompts = [np.concatenate([system, tokens(prompt_tokens - 75, prompt_tokens - 65)]) for _ in range(num_prompts)]
    answers = [[tokens(20, 90) for _ in range(3)] for _ in prompts]
    groups = []
    for _ in range(num_pairs):
        for prompt, known in zip(prompts, answers, strict=True):
            sides = [known[random.integers(3)] if random.random() < 0.5 else tokens(20, 90) for _ in range(2)]
            groups.append([Completion(ids=np.concatenate([prompt, side]), start=len(prompt)) for side in sides])
    return groups


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
@pytest.mark.parametrize("what", ["logprob", "reward"])
def test_pairs_of_one_prompt_share_it_and_no_number_moves(what, family):
    groups = pairs_of_prompts(num_prompts=3, num_pairs=4, prompt_tokens=200)
    if what == "logprob":
        engine = LogprobEngine(tiny_model(family))
    else:
        engine = ClassifierEngine(tiny_model(family, classifier=True, num_labels=1))
    assert engine.kernel == "sdpa"
    alone = np.concatenate([engine.score([group]).values for group in groups])
    np.testing.assert_array_equal(engine.score(groups).values, alone)


def test_a_full_memory_makes_steps_smaller_where_pairs_share():
    groups = pairs_of_prompts(num_prompts=2, num_pairs=6, prompt_tokens=300)
    expected = LogprobEngine(tiny_model("llama")).score(groups).values
    model = tiny_model("llama")
    engine = LogprobEngine(model)
    hold_at_most(model, 700)
    np.testing.assert_array_equal(engine.score(groups).values, expected)


def test_what_pairs_of_one_prompt_share_is_laid_out_once():
    groups = pairs_of_prompts(num_prompts=3, num_pairs=4, prompt_tokens=200)
    ordered = [groups[i] for i in sharing_order(groups)]
    alone = sum(map(num_packed_tokens, groups))
    in_blocks, whole = (
        sum(segment.num_queries for segment in response_step(ordered, sharing=sharing).segments)
        for sharing in (BLOCK_ROWS, 1)
    )
    assert whole < in_blocks
    assert alone > 1.5 * in_blocks
    assert response_step([groups[0], groups[0]], sharing=BLOCK_ROWS).ids.size == response_step(groups[:1]).ids.size
