"""Train policies of the simulated worlds by the objective itself, many selections at once.

Every run of a stack starts from the same policy, takes the same number of steps of the same size of batch and sees its
own rows in an order drawn from the same seed: what differs is the selection.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.study.worlds import FloatArray, Pairs, log_softmax
from pipeline import schema
from pipeline.config import Objective

Rows = npt.NDArray[np.int64]
Optimiser = Literal["adam", "descent"]

STEP_SIZES: Final[dict[Optimiser, float]] = {"adam": 0.02, "descent": 2.0}
_DECAY: Final = (0.9, 0.999)
_EPSILON: Final = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a policy is trained.

    optimiser: adam takes steps of one size whatever the size of the gradient; plain descent takes smaller ones where
        the pairs are learned already.
    """

    num_steps: int = 80
    batch_size: int = 32
    optimiser: Optimiser = "adam"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """-log(sigmoid(margin - target)) on pairs, with margin = sum(weights * logps) - margin_reference.

    weights: [num_pairs, num_tokens], what the margin gives to the log-probability of each token.
    margin_reference: [num_pairs].
    """

    prompts: FloatArray
    weights: FloatArray
    margin_reference: FloatArray
    target: float

    def margins(self, policy: FloatArray) -> FloatArray:
        """Implicit margins under a policy, [num_pairs]."""
        margins: FloatArray = (self.weights * log_softmax(self.prompts @ policy)).sum(axis=1) - self.margin_reference
        return margins


def loss_of(pairs: Pairs, objective: Objective, reference: FloatArray) -> Loss:
    """The loss of DPO, against the reference, or of SimPO, with a target margin of half of beta, on pairs."""
    beta = objective.parameters["beta"]
    chosen, rejected = pairs.counts_chosen, pairs.counts_rejected
    if objective.name == "simpo":
        chosen, rejected = (counts / counts.sum(axis=1, keepdims=True) for counts in (chosen, rejected))
    weights = beta * (chosen - rejected)
    with_reference = objective.name == "dpo"
    logps = log_softmax(pairs.prompts @ reference)
    margin = (weights * logps).sum(axis=1) if with_reference else np.zeros(len(weights))
    return Loss(
        prompts=pairs.prompts, weights=weights, margin_reference=margin, target=0.0 if with_reference else 0.5 * beta
    )


def scored_table(pairs: Pairs, policy: FloatArray, reference: FloatArray) -> pa.Table:
    """The pairs as `alignpot score` would write them: raw columns, one row a pair."""
    logps = {"policy": log_softmax(pairs.prompts @ policy), "reference": log_softmax(pairs.prompts @ reference)}
    columns = {
        schema.ID: [f"{row:08d}" for row in range(len(pairs.prompts))],
        schema.REWARD_CHOSEN: pairs.reward_chosen,
        schema.REWARD_REJECTED: pairs.reward_rejected,
    }
    for side, counts in (("chosen", pairs.counts_chosen), ("rejected", pairs.counts_rejected)):
        columns[f"num_tokens_{side}"] = counts.sum(axis=1).astype(np.int64)
        for role, logp in logps.items():
            columns[f"{role}_logp_{side}"] = (counts * logp).sum(axis=1)
    return pa.table(columns)


def train(start: FloatArray, loss: Loss, selections: list[Rows], training: Training, seed: int) -> FloatArray:
    """One trained policy for each selection of rows, [num_selections, num_features, num_tokens]."""
    policy = np.repeat(start[None], len(selections), axis=0)
    step_size = STEP_SIZES[training.optimiser]
    first, second = np.zeros_like(policy), np.zeros_like(policy)
    batches = np.stack([_batches(rows, training, seed) for rows in selections], axis=1)
    for step, batch in enumerate(batches, start=1):
        gradient = _gradient(policy, loss, batch)
        if training.optimiser == "descent":
            policy -= step_size * gradient
            continue
        first += (1 - _DECAY[0]) * (gradient - first)
        second += (1 - _DECAY[1]) * (gradient**2 - second)
        corrected = step_size * np.sqrt(1 - _DECAY[1] ** step) / (1 - _DECAY[0] ** step)
        policy -= corrected * first / (np.sqrt(second) + _EPSILON)
    return policy


def _gradient(policy: FloatArray, loss: Loss, batch: Rows) -> FloatArray:
    """Gradient of the mean loss, by policy; batch holds rows, [num_selections, batch_size]."""
    prompts, weights = loss.prompts[batch], loss.weights[batch]
    logps = log_softmax(prompts @ policy)
    margins = (weights * logps).sum(axis=-1) - loss.margin_reference[batch]
    by_logits = weights - weights.sum(axis=-1, keepdims=True) * np.exp(logps)
    slope = 0.5 * np.tanh((margins - loss.target) / 2) - 0.5  # of -log(sigmoid), without overflow
    by_logits *= slope[..., None] / batch.shape[1]
    gradient: FloatArray = prompts.swapaxes(-1, -2) @ by_logits
    return gradient


def _batches(rows: Rows, training: Training, seed: int) -> Rows:
    """Rows of every step, [num_steps, batch_size]: whole passes, each in a new order."""
    rng = np.random.default_rng(seed)
    wanted = training.num_steps * training.batch_size
    passes = [rng.permutation(rows) for _ in range(-(-wanted // len(rows)))]
    batches: Rows = np.concatenate(passes)[:wanted].reshape(training.num_steps, training.batch_size)
    return batches
