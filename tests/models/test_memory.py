"""A full memory, and a row that there is no room for: it costs that row, and no other a number."""

import numpy as np
import pytest
import torch

from pipeline.models.logprobs import LogprobEngine
from pipeline.models.memory import Budget, is_memory_error, run_in_steps
from pipeline.models.packing import Completion
from pipeline.models.rewards import ClassifierEngine
from pipeline.rewards.classifier import ClassifierScorer
from pipeline.schema import CHOSEN, DROP_REASON, DROP_STAGE, POLICY_LOGP_CHOSEN, REWARD_CHOSEN, STATUS
from pipeline.steps.reward_stage import RewardPairs
from pipeline.steps.score_stages import ScorePairs
from tests.fixtures_models import tiny_model
from tests.models.pairs import demo_pairs, tokenized_pairs

GPU = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")


def hold_at_most(model, num_tokens: int, error: BaseException = GPU) -> list[int]:
    """Make the forward of a model fail as if memory held `num_tokens` tokens; returns the lengths that it ran."""
    ran: list[int] = []

    def refuse(_, args, kwargs):
        length = (args[0] if args else kwargs["input_ids"]).numel()
        if length > num_tokens:
            raise error
        ran.append(length)

    model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    return ran


@pytest.mark.parametrize("error", [GPU, CPU, MemoryError()])
def test_a_full_memory_makes_steps_smaller_and_changes_no_number(error, groups):
    expected = LogprobEngine(tiny_model("llama"), token_budget=2_000).score(groups).values
    model = tiny_model("llama")
    engine = LogprobEngine(model, token_budget=2_000)
    ran = hold_at_most(model, 256, error)
    scores = engine.score(groups)
    np.testing.assert_array_equal(scores.values, expected)
    assert scores.left_out == {}
    assert len(ran) > 2
    again = len(ran)
    engine.score(groups)
    assert len(ran) == 2 * again or len(ran) == 2 * again - 1  # the smaller budget is kept: nothing fails again


def test_other_errors_are_not_taken_for_a_full_memory(groups):
    model = tiny_model("llama")
    engine = LogprobEngine(model)
    hold_at_most(model, 10, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        engine.score(groups)
    assert not is_memory_error(ValueError("not enough memory of the past"))


def test_a_group_too_large_for_memory_is_scored_in_parts():
    random = np.random.default_rng(0)
    prompt = random.integers(3, 400, 30)
    group = [
        Completion(ids=np.append(prompt, random.integers(3, 400, 50)).astype(np.int32), start=30) for _ in "1234567"
    ]
    expected = LogprobEngine(tiny_model("llama")).score([group]).values
    model = tiny_model("llama")
    engine = LogprobEngine(model)
    hold_at_most(model, 192)
    scores = engine.score([group])
    assert scores.left_out == {}
    np.testing.assert_allclose(scores.values, expected, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_a_sequence_too_long_for_memory_is_left_out_alone(family, groups):
    long = np.random.default_rng(1).integers(3, 400, 400).astype(np.int32)
    with_long = [*groups[:2], [Completion(ids=long, start=4), Completion(ids=long[:60], start=4)], *groups[2:]]
    place = sum(len(group) for group in groups[:2])
    expected = LogprobEngine(tiny_model(family)).score(with_long).values
    model = tiny_model(family)
    engine = LogprobEngine(model)
    hold_at_most(model, 256)
    scores = engine.score(with_long)
    assert scores.left_out == {place: "does_not_fit_memory"}
    assert np.flatnonzero(np.isnan(scores.values)).tolist() == [place]
    np.testing.assert_allclose(np.delete(scores.values, place), np.delete(expected, place), rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_sequence_longer_than_the_learned_positions_is_left_out_alone(family, groups):
    room = {"n_positions": 64} if family == "gpt2" else {"max_position_embeddings": 64}
    engine = ClassifierEngine(tiny_model(family, classifier=True, num_labels=1, **room))
    rewards = engine.score(groups)
    long = [i for i, c in enumerate(c for group in groups for c in group) if len(c.ids) > 64]
    assert long
    assert rewards.left_out == dict.fromkeys(long, "longer_than_model")
    assert np.flatnonzero(np.isnan(rewards.values)).tolist() == long


def test_steps_get_smaller_only_as_far_as_needed(groups):
    sizes: list[int] = []

    def run(some):
        sizes.append(len(some))
        if len(some) > 2:
            raise GPU
        return lambda: np.zeros(sum(len(group) for group in some))

    budget = Budget(tokens=1_000_000)
    found = run_in_steps(groups, run, budget)
    assert len(found.values) == sum(len(group) for group in groups)
    assert 1 < budget.tokens < 1_000_000
    assert sum(size > 2 for size in sizes) <= 4


def test_a_step_is_started_before_the_numbers_of_the_last_one_are_waited_for():
    groups = [[Completion(ids=np.full(10, number, dtype=np.int32), start=1)] for number in range(5)]
    events: list[str] = []

    def run(some):
        number = int(some[0][0].ids[0])
        events.append(f"start {number}")

        def numbers():
            events.append(f"wait {number}")
            return np.array([float(number)])

        if number == 3:
            raise GPU
        return numbers

    found = run_in_steps(groups, run, Budget(tokens=10))
    assert events == ["start 0", "start 1", "wait 0", "start 2", "wait 1", "start 3", "wait 2", "start 4", "wait 4"]
    np.testing.assert_array_equal(found.values, [0, 1, 2, np.nan, 4])
    assert found.left_out == {3: "does_not_fit_memory"}


@pytest.mark.parametrize("stage", ["policy", "reward"])
def test_a_row_that_does_not_fit_is_dropped_with_a_reason_and_the_others_are_scored(stage):
    rows = demo_pairs(6)
    rows[2] = {**rows[2], "chosen": [{"role": "assistant", "content": "never ending " * 150}]}
    table = tokenized_pairs(rows)
    model = tiny_model("llama", classifier=stage == "reward", **({"num_labels": 1} if stage == "reward" else {}))
    run = (
        ScorePairs(LogprobEngine(model), "policy")
        if stage == "policy"
        else RewardPairs(ClassifierScorer(ClassifierEngine(model)), reads_ids=True)
    )
    undisturbed = run(table).to_pylist()
    lengths = sorted(sum(len(m["content"]) for m in row[CHOSEN]) for row in undisturbed)
    assert lengths[-1] > 1_000
    hold_at_most(model, 640)
    column = POLICY_LOGP_CHOSEN if stage == "policy" else REWARD_CHOSEN
    scored = run(table).to_pylist()
    assert [row[STATUS] for row in scored] == ["kept", "kept", "dropped", "kept", "kept", "kept"]
    assert (scored[2][DROP_STAGE], scored[2][DROP_REASON], scored[2][column]) == (stage, "does_not_fit_memory", None)
    for got, expected in zip(scored[:2] + scored[3:], undisturbed[:2] + undisturbed[3:], strict=True):
        assert got[column] == expected[column]


@pytest.mark.parametrize(("budget", "num_steps"), [(None, 2), (6_000, 1)])
def test_on_cpu_steps_have_4096_tokens_unless_a_budget_is_given(budget, num_steps):
    ids = np.random.default_rng(0).integers(3, 400, (6, 800)).astype(np.int32)
    model = tiny_model("llama")
    engine = LogprobEngine(model, budget)
    ran = hold_at_most(model, 1_000_000)
    engine.score([[Completion(ids=row, start=790)] for row in ids])
    assert len(ran) == num_steps
