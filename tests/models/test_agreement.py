"""Real rows are compared with the model's own forward before the first shard is scored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models import attention
from pipeline.models.agreement import excess, worth_comparing
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.packing import Completion
from pipeline.models.rewards import ClassifierEngine
from pipeline.rewards.classifier import ClassifierScorer
from pipeline.schema import POLICY_LOGP_CHOSEN, POLICY_LOGP_REJECTED
from pipeline.steps.reward_stage import RewardPairs
from pipeline.steps.score_stages import ScorePairs
from tests.fixtures_models import tiny_model
from tests.models.pairs import demo_pairs, tokenized_pairs

ROWS = 6


def count_plain_forwards(engine, monkeypatch) -> list[int]:
    """Lengths of the sequences that the engine runs by the model's own forward."""
    lengths: list[int] = []
    backbone = engine._backbone
    forward_one = backbone.forward_one

    def counted(completion):
        lengths.append(len(completion.ids))
        return forward_one(completion)

    monkeypatch.setattr(backbone, "forward_one", counted)
    return lengths


def branches_that_see_each_other(monkeypatch) -> None:
    """Break packed attention: a branch also sees the rows between its context and itself."""
    visible, mask = attention._visible, attention._mask

    def widened(segment):
        return replace(segment, context=((segment.context[0][0], segment.query[0]),)) if segment.context else segment

    monkeypatch.setattr(attention, "_visible", lambda states, segment: visible(states, widened(segment)))
    monkeypatch.setattr(attention, "_mask", lambda state, segment, *rest: mask(state, widened(segment), *rest))


def windows_that_are_dropped(monkeypatch) -> None:
    mask = attention._mask
    monkeypatch.setattr(attention, "_mask", lambda state, segment, _, query: mask(state, segment, None, query))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "broken"), [("llama", branches_that_see_each_other), ("mistral", windows_that_are_dropped)]
)
def test_attention_that_breaks_after_the_start_stops_the_run(family, broken, dtype, monkeypatch):
    engine = LogprobEngine(tiny_model(family).to(dtype))
    assert engine.kernel == "sdpa"
    broken(monkeypatch)
    rows = demo_pairs(ROWS)
    with pytest.raises(ModelError, match=r"ForCausalLM.*sdpa.*mean log-prob.*row-\d+") as error:
        ScorePairs(engine, "policy")(tokenized_pairs(rows))
    words = str(error.value)
    assert "The policy model" in words
    assert "Try dtype: float32" in words
    assert not any(message["content"] in words for row in rows for message in row["prompt"])


def test_rewards_that_break_after_the_start_stop_the_run(monkeypatch):
    engine = ClassifierEngine(tiny_model("llama", classifier=True, num_labels=1))
    branches_that_see_each_other(monkeypatch)
    with pytest.raises(ModelError, match=r"The reward model.*LlamaForSequenceClassification.* in reward on real rows"):
        RewardPairs(ClassifierScorer(engine), reads_ids=True)(tokenized_pairs(demo_pairs(ROWS)))


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float32) for family in ("llama", "gemma2", "mixtral")),
        ("llama", torch.bfloat16),
        *(pytest.param(family, torch.bfloat16, marks=pytest.mark.soak) for family in ("gemma2", "mixtral")),
    ],
)
def test_a_sound_engine_is_compared_once_on_few_rows_and_its_numbers_stay(family, dtype, monkeypatch):
    table = tokenized_pairs(demo_pairs(ROWS))
    expected = ScorePairs(LogprobEngine(tiny_model(family).to(dtype)), "policy")(table)
    engine = LogprobEngine(tiny_model(family).to(dtype))
    plain = count_plain_forwards(engine, monkeypatch)
    stage = ScorePairs(engine, "policy")
    first = stage(table)
    assert len(plain) in (8, 16)  # twice where a bfloat16 difference asks how noisy the model itself is
    again = len(plain)
    second = stage(table)
    assert len(plain) == again
    for column in (POLICY_LOGP_CHOSEN, POLICY_LOGP_REJECTED):
        assert first.column(column).to_pylist() == second.column(column).to_pylist()
        assert first.column(column).to_pylist() == expected.column(column).to_pylist()


def test_what_is_scored_one_by_one_costs_no_comparison(monkeypatch):
    engine = LogprobEngine(tiny_model("mamba"))
    plain = count_plain_forwards(engine, monkeypatch)
    ScorePairs(engine, "policy")(tokenized_pairs(demo_pairs(2)))
    assert len(plain) == 4


def test_an_empty_first_shard_leaves_the_comparison_to_the_next(monkeypatch):
    engine = LogprobEngine(tiny_model("llama"))
    table = tokenized_pairs(demo_pairs(ROWS))
    stage = ScorePairs(engine, "policy")
    assert stage(table.slice(0, 0)).num_rows == 0
    branches_that_see_each_other(monkeypatch)
    with pytest.raises(ModelError, match="own forward"):
        stage(table)


def pair(prompt: int, chosen: int, rejected: int) -> list[Completion]:
    start = np.arange(prompt, dtype=np.int32)
    return [
        Completion(ids=np.concatenate([start, np.full(n, token, np.int32)]), start=prompt)
        for n, token in ((chosen, 500), (rejected, 501))
    ]


def test_the_shortest_pairs_that_say_enough_are_compared_and_one_beyond_the_window():
    sizes = [(10, 2, 30), (10, 40, 40), (10, 20, 20), (300, 50, 50), (10, 30, 30), (10, 90, 90), (10, 25, 25)]
    pairs = [pair(*size) for size in sizes]
    assert worth_comparing(pairs, None) == [1, 2, 4, 6]
    assert worth_comparing(pairs, 80) == [2, 4, 5, 6]
    assert worth_comparing(pairs[:1], None) == [0]
    assert worth_comparing([pair(10, 0, 5)], None) == []
    assert worth_comparing([pair(20_000, 30, 30)], None) == []


def test_half_precision_is_given_more_room_for_few_tokens_and_none_for_what_is_no_number():
    got, expected, counts = np.array([1.3, 1.1, 1.1, np.nan]), np.ones(4), np.array([1, 16, 400, 100])
    assert (excess(got, expected, counts, torch.bfloat16) <= 1).tolist() == [True, True, False, False]
    assert (excess(got, expected, counts, torch.float32) <= 1).tolist() == [False, False, False, False]
