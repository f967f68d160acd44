"""Implicit rewards: what each training objective takes a policy's log-probabilities to be worth.

One objective is one function and one line in OBJECTIVES. A definition names the scored quantities it reads per
side; nothing else in the pipeline knows an objective's formula. Everything is float64, element-wise, one value a row.
A value that cannot be computed is NaN, for the caller to count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import Objective
from pipeline.metrics.columns import FloatArray, float_column

Quantity = Literal["policy_logp", "reference_logp", "num_tokens"]
Side = Literal["chosen", "rejected"]

COLUMN_OF: Final[Mapping[Side, Mapping[Quantity, str]]] = {
    "chosen": {
        "policy_logp": schema.POLICY_LOGP_CHOSEN,
        "reference_logp": schema.REFERENCE_LOGP_CHOSEN,
        "num_tokens": schema.NUM_TOKENS_CHOSEN,
    },
    "rejected": {
        "policy_logp": schema.POLICY_LOGP_REJECTED,
        "reference_logp": schema.REFERENCE_LOGP_REJECTED,
        "num_tokens": schema.NUM_TOKENS_REJECTED,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitReward:
    """The implicit reward of one objective.

    reads: the quantities of one side that `formula` takes, log-probabilities summed over the response tokens.
    formula: (quantities, beta) -> reward of that side, float64 [num_rows].
    """

    reads: tuple[Quantity, ...]
    formula: Callable[[Mapping[Quantity, FloatArray], float], FloatArray]


def simpo(side: Mapping[Quantity, FloatArray], beta: float) -> FloatArray:
    """SimPO: r = beta / n * log pi(y|x), the mean log-probability of a response token (arXiv 2405.14734, eq. 4)."""
    return beta * (side["policy_logp"] / _counts(side["num_tokens"]))


def dpo(side: Mapping[Quantity, FloatArray], beta: float) -> FloatArray:
    """DPO: r = beta * (log pi(y|x) - log pi_ref(y|x)), up to a term of the prompt (arXiv 2305.18290, eq. 5)."""
    return beta * (side["policy_logp"] - side["reference_logp"])


OBJECTIVES: Final[Mapping[str, ImplicitReward]] = {
    "simpo": ImplicitReward(reads=("policy_logp", "num_tokens"), formula=simpo),
    "dpo": ImplicitReward(reads=("policy_logp", "reference_logp"), formula=dpo),
}


def objective_columns(objective: Objective) -> tuple[str, ...]:
    """The scored columns of both sides that the objective's implicit margin is computed from."""
    reads = OBJECTIVES[objective.name].reads
    return tuple(COLUMN_OF[side][quantity] for quantity in reads for side in COLUMN_OF)


def implicit_reward(table: pa.Table | pa.RecordBatch, objective: Objective, side: Side) -> FloatArray:
    """Implicit reward of one side of every pair, float64 [num_rows].

    NaN where a column is null or NaN, or where the objective divides by a token count below 1.

    Raises:
        SchemaError: a column that the objective reads is missing or not numeric.
    """
    definition = OBJECTIVES[objective.name]
    quantities = {quantity: float_column(table, COLUMN_OF[side][quantity]) for quantity in definition.reads}
    with np.errstate(invalid="ignore", over="ignore"):
        return definition.formula(quantities, objective.beta)


def _counts(num_tokens: FloatArray) -> FloatArray:
    """Token counts, NaN where there is no token to average over."""
    valid = num_tokens >= 1
    return num_tokens if valid.all() else np.where(valid, num_tokens, np.nan)
