"""What a scoring engine owes besides speed: the same numbers as others, nearly float32's, and the same every time."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.models.logprobs import LogprobEngine
from pipeline.models.prompts import TokenizedPair
from tests.benchmarks.scoring_peers import Timed, paper_means
from tests.models.pairs import score_pairs
from tests.models.plain import rows_stand_alone

MEAN_LOGP_MAX, MEAN_LOGP_RMS = 0.05, 0.02


def num_tokens(pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """Response tokens, (2, pairs)."""
    return np.array([[p.num_tokens_chosen, p.num_tokens_rejected] for p in pairs]).T


def check_agreement(timed: Timed, ours: Timed, pairs: Sequence[TokenizedPair]) -> None:
    """The correctness gate: mean log-probabilities within bfloat16 noise of each other."""
    assert timed.sums is not None
    assert ours.sums is not None
    difference = np.abs(timed.sums - ours.sums) / num_tokens(pairs)
    worst, rms = float(difference.max()), _rms(difference)
    print(f"gate {timed.name}: mean log-prob differs from ours by {worst:.4f} at most, {rms:.4f} RMS", flush=True)
    # Both sides carry noise of that size against float32, and more of it where a response has a few tokens only.
    few = np.sqrt(np.maximum(1.0, 16 / num_tokens(pairs)))
    if not (np.all(difference <= 2 * MEAN_LOGP_MAX * few) and rms <= 2 * MEAN_LOGP_RMS):
        sys.exit(f"{timed.name} and our engine disagree: {worst:.4f} at most, {rms:.4f} RMS")


def check_invariance(model: Any, pairs: Sequence[TokenizedPair], *, compiled: bool = False) -> int:
    """Scores are the same to the bit in any order, under any token budget and in shards of any size.

    On a CPU whose products depend on the number of rows this is only looked at, not demanded.

    Returns:
        how many of the other ways to score the pairs gave the bits of the first.
    """
    whole, small, large = (LogprobEngine(model, budget, compiled=compiled) for budget in (16384, 512, 2048))
    expected = score_pairs(whole, pairs)
    order = np.random.default_rng(0).permutation(len(pairs))
    back = np.argsort(order)
    others = {
        "shuffled": score_pairs(large, [pairs[i] for i in order])[:, back],
        "a budget of 512 tokens": score_pairs(small, pairs),
        "a budget of 2048 tokens": score_pairs(large, pairs),
        "shards of 1": _in_shards(large, pairs, 1),
        "shards of 5, shuffled": _in_shards(large, [pairs[i] for i in order], 5)[:, back],
    }
    different = [name for name, found in others.items() if not np.array_equal(found, expected)]
    print(f"gate invariance: {len(others)} other ways, {len(different)} not equal to the bit", flush=True)
    if different and rows_stand_alone(model.dtype):
        sys.exit(f"scores move with: {', '.join(different)}")
    return len(others) - len(different)


def accuracy(model: Any, exact: Any, ours: np.ndarray, pairs: Sequence[TokenizedPair]) -> dict[str, float]:
    """RMS errors of the margin of mean log-probabilities against float32, and ours as a ratio to the paper's.

    Args:
        model: in bfloat16, for the paper's form.
        exact: the same weights in float32, run by its own forward, one sequence at a time.
        ours: our sums, (2, pairs).
        pairs: what was scored.
    """
    truth = _exact_means(exact, pairs)
    paper, in_float32 = paper_means(model, pairs)
    errors = {
        "alignpot": _margin_error(ours / num_tokens(pairs), truth),
        "paper": _margin_error(paper, truth),
        "paper, float32 log-softmax": _margin_error(in_float32, truth),
    }
    for name, error in errors.items():
        print(f"margin error {name:<28}{error:.5f} RMS", flush=True)
    return {
        **{f"rms {name}": round(error, 5) for name, error in errors.items()},
        "ratio to paper": round(errors["alignpot"] / errors["paper"], 3),
        "ratio to paper, float32 log-softmax": round(errors["alignpot"] / errors["paper, float32 log-softmax"], 3),
    }


@torch.no_grad()
def _exact_means(exact: Any, pairs: Sequence[TokenizedPair]) -> np.ndarray:
    found = []
    for pair in pairs:
        for ids, start in ((pair.chosen_ids, pair.chosen_start), (pair.rejected_ids, pair.rejected_start)):
            tokens = torch.as_tensor(ids, dtype=torch.int64)
            logits = exact(tokens[None], use_cache=False).logits[0, start - 1 : -1]
            logp = logits.double().log_softmax(-1).gather(1, tokens[start:, None])
            found.append(float(logp.mean()))
    return np.asarray(found).reshape(-1, 2).T


def _margin_error(means: np.ndarray, truth: np.ndarray) -> float:
    return _rms((means[0] - means[1]) - (truth[0] - truth[1]))


def _in_shards(engine: LogprobEngine, pairs: Sequence[TokenizedPair], size: int) -> np.ndarray:
    shards = [score_pairs(engine, pairs[i : i + size]) for i in range(0, len(pairs), size)]
    return np.concatenate(shards, axis=1)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
