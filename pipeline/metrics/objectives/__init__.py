"""What each training objective takes a policy's log-probabilities to be worth: implicit rewards and margins.

    definition   what an objective is made of
    likelihood   without a reference: SimPO, AlphaPO, CPO, ORPO, RRHF, SLiC
    log_ratio    DPO and the losses that share its reward, IPO, KTO, SLiC with a reference
    divergence   f-DPO
    adjusted     R-DPO, DPOP, alpha-DPO

One objective is one function and one entry of its file's table, which also gives its parameters and their defaults.
Nothing else in the pipeline knows its formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.errors import ConfigError
from pipeline.metrics.columns import FloatArray, float_column
from pipeline.metrics.objectives.adjusted import ADJUSTED
from pipeline.metrics.objectives.definition import Definition, Quantities, Quantity
from pipeline.metrics.objectives.divergence import DIVERGENCE
from pipeline.metrics.objectives.likelihood import LIKELIHOOD
from pipeline.metrics.objectives.log_ratio import LOG_RATIO

if TYPE_CHECKING:
    from pipeline.config import Objective

__all__ = ["COLUMN_OF", "OBJECTIVES", "Definition", "implicit_reward", "objective_columns", "quantities_of"]

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

OBJECTIVES: Final[Mapping[str, Definition]] = {**LIKELIHOOD, **LOG_RATIO, **DIVERGENCE, **ADJUSTED}


def objective_columns(objective: Objective) -> tuple[str, ...]:
    """The scored columns of both sides that the objective's implicit margin is computed from."""
    reads = OBJECTIVES[objective.name].reads
    return tuple(COLUMN_OF[side][quantity] for quantity in reads for side in COLUMN_OF)


def implicit_reward(table: pa.Table | pa.RecordBatch, objective: Objective, side: Side) -> FloatArray:
    """Implicit reward of one side of every pair, float64 [num_rows].

    NaN where a column that the objective reads is null or not finite or a token count below 1; infinite where the
    formula leaves the range of a double.

    Raises:
        SchemaError: a column that the objective reads is missing or not numeric.
        ConfigError: the objective has a margin, but no reward of one side (dpop).
    """
    reward = OBJECTIVES[objective.name].reward
    if reward is None:
        raise ConfigError(
            f"objective {objective.name} has no reward of one side, only a margin of both; use implicit_margin."
        )
    quantities = quantities_of(table, objective, side)
    with np.errstate(all="ignore"):
        return reward(quantities, objective.parameters)


def quantities_of(table: pa.Table | pa.RecordBatch, objective: Objective, side: Side) -> Quantities:
    """What the objective reads of one side, each value finite or NaN, token counts at least 1 or NaN.

    Raises:
        SchemaError: a column that the objective reads is missing or not numeric.
    """
    return {
        quantity: _valid(quantity, float_column(table, COLUMN_OF[side][quantity]))
        for quantity in OBJECTIVES[objective.name].reads
    }


def _valid(quantity: Quantity, values: FloatArray) -> FloatArray:
    """The values, NaN where they are none: a formula may map an infinity or an empty response to a finite number."""
    valid = np.isfinite(values)
    if quantity == "num_tokens":
        valid &= values >= 1
    return values if valid.all() else np.where(valid, values, np.nan)
