"""On CPU a score does not depend, to the bit, on order, company, token budget, shard size or threads.

Two exceptions move by a rounding: half precision on CPUs with tiles, and mixtures of experts, where how many rows an
expert gets depends on the company.
"""

import numpy as np
import pytest
import torch

from pipeline.config import Tokens
from pipeline.models.logprobs import LogprobEngine
from pipeline.models.prompts import PairTokenizer
from pipeline.models.rewards import ClassifierEngine
from pipeline.rewards.classifier import ClassifierScorer
from pipeline.schema import ID, POLICY_LOGP_CHOSEN, POLICY_LOGP_REJECTED, REWARD_CHOSEN, REWARD_REJECTED
from pipeline.steps.reward_stage import RewardPairs
from pipeline.steps.score_stages import ScorePairs
from tests.fixtures_models import tiny_model
from tests.models.pairs import demo_pairs, pair_groups, tokenized_pairs
from tests.models.plain import num_read, rows_stand_alone
from tests.models.smollm2 import smollm2

BUDGETS = [(1, 1), (100, 2)]
"""Token budgets, each with a number of threads."""
NUM_PAIRS = 7


def engine_and_score(what: str, family: str, dtype: torch.dtype, budget: int):
    if what == "logprob":
        engine = LogprobEngine(tiny_model(family).to(dtype), token_budget=budget)
        return engine, lambda groups: engine.score(groups).values
    rewarding = ClassifierEngine(tiny_model(family, classifier=True, num_labels=1).to(dtype), token_budget=budget)
    return rewarding, lambda groups: rewarding.score(groups).values


def assert_same(found, expected, dtype: torch.dtype) -> None:
    np.testing.assert_allclose(found, expected, rtol=0.0 if rows_stand_alone(dtype) else 0.02)


@pytest.mark.parametrize("what", ["logprob", "reward"])
@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.float32), ("gemma2", torch.float32), ("gpt2", torch.float32), ("llama", torch.bfloat16)],
)
def test_scores_do_not_depend_on_order_budget_company_or_threads(what, family, dtype, groups):
    engine, score = engine_and_score(what, family, dtype, 1_000_000)
    assert engine.kernel == "sdpa"
    expected = np.split(score(groups), np.cumsum([len(g) for g in groups])[:-1])
    random = np.random.default_rng(0)
    for budget, threads in BUDGETS:
        torch.set_num_threads(threads)
        _, shuffled = engine_and_score(what, family, dtype, budget)
        order = random.permutation(len(groups))
        found, wanted = shuffled([groups[i] for i in order]), np.concatenate([expected[i] for i in order])
        assert_same(found, wanted, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mixture_of_experts_moves_by_a_rounding_at_most(dtype, groups):
    model = tiny_model("qwen3_moe").to(dtype)
    one, all_at_once = (LogprobEngine(model, token_budget=budget).score(groups) for budget in (1, 10_000))
    difference = np.abs(one.values - all_at_once.values) / num_read(groups)
    assert difference.max() < (1e-5 if dtype == torch.float32 else 0.05)


def by_id(stage, table, shard_rows: int, columns: tuple[str, str]) -> dict[str, tuple[float, float]]:
    shards = [stage(table.slice(begin, shard_rows)) for begin in range(0, table.num_rows, shard_rows)]
    return {row[ID]: (row[columns[0]], row[columns[1]]) for shard in shards for row in shard.to_pylist()}


@pytest.mark.parametrize("what", ["logprob", "reward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_do_not_depend_on_shards(what, dtype):
    table = tokenized_pairs(demo_pairs(NUM_PAIRS))
    if what == "logprob":
        columns = (POLICY_LOGP_CHOSEN, POLICY_LOGP_REJECTED)
        stages = [ScorePairs(LogprobEngine(tiny_model("llama").to(dtype), budget), "policy") for budget in (4096, 500)]
    else:
        columns = (REWARD_CHOSEN, REWARD_REJECTED)
        models = [tiny_model("llama", classifier=True, num_labels=1).to(dtype) for _ in range(2)]
        stages = [
            RewardPairs(ClassifierScorer(ClassifierEngine(m, budget)), reads_ids=True)
            for m, budget in zip(models, (4096, 500), strict=True)
        ]
    whole = by_id(stages[0], table, NUM_PAIRS, columns)
    assert len(set(whole.values())) == NUM_PAIRS
    shuffled = table.take(np.random.default_rng(0).permutation(NUM_PAIRS))
    for shard_rows in (1, 3):
        found = by_id(stages[1], shuffled, shard_rows, columns)
        assert found.keys() == whole.keys()
        assert_same([found[row] for row in whole], list(whole.values()), dtype)


@pytest.mark.soak
@pytest.mark.smollm2
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smollm2_scores_do_not_depend_on_order_budget_shards_or_threads(smollm2_dir, dtype):
    model, tokenizer = smollm2(smollm2_dir, dtype)
    tokenizer = PairTokenizer(tokenizer, Tokens())
    groups = pair_groups([tokenizer.tokenize(r["prompt"], r["chosen"], r["rejected"]) for r in demo_pairs(4)])
    expected = LogprobEngine(model).score(groups).values.reshape(-1, 2)
    order = np.random.default_rng(0).permutation(len(groups))
    torch.set_num_threads(2)
    small = LogprobEngine(model, token_budget=300)
    halves = [small.score([groups[i] for i in half]).values for half in (order[:2], order[2:])]
    assert_same(np.concatenate(halves).reshape(-1, 2), expected[order], model.dtype)
