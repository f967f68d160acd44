"""Margins of a table of scored pairs: what separates chosen from rejected, in reward and in the policy's eyes.

Always chosen minus rejected, float64, one value a row; a value that cannot be computed is NaN, for the caller to count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.errors import ConfigError, SchemaError
from pipeline.metrics.columns import FloatArray, float_column, floats, single_array
from pipeline.metrics.objectives import OBJECTIVES, Quantity, Side

if TYPE_CHECKING:
    from pipeline.config import Explicit, Objective

SideName = Literal["chosen", "rejected"]
Int64Array = npt.NDArray[np.int64]

COLUMN_OF: Final[Mapping[SideName, Mapping[Quantity, str]]] = {
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

EXPLICIT_COLUMNS: Final[Mapping[Explicit, tuple[str, ...]]] = {
    "signed": (schema.REWARD_CHOSEN, schema.REWARD_REJECTED),
    "absolute": (schema.REWARD_CHOSEN, schema.REWARD_REJECTED),
    "candidates": (schema.REWARDS_ALL,),
}


def explicit_margin(table: pa.Table | pa.RecordBatch, kind: Explicit = "signed", reward: str = "") -> FloatArray:
    """Reward margin of every pair, float64 [num_rows]. reward: the name of one of several.

    signed: r*(chosen) - r*(rejected). Of a pairwise judge (lead(chosen) - lead(rejected)) / 2, and 0 where both leads
    have one sign, because the two orders disagree then. absolute: its magnitude. candidates: largest minus smallest
    reward of all K responses the pair was drawn from, whichever of them are chosen and rejected (the recipe of the
    paper's code).
    NaN where a reward is null or NaN, or a row has no candidates.

    Raises:
        SchemaError: a column is missing or of another type.
    """
    if kind == "candidates":
        return candidates_range(table)
    with np.errstate(invalid="ignore", over="ignore"):
        chosen, rejected = (float_column(table, name) for name in schema.reward_columns(reward))
        margin = chosen - rejected
        if {*schema.lead_columns(reward)} <= {*table.schema.names}:
            ours, theirs = (float_column(table, name) for name in schema.lead_columns(reward))
            judged = np.where(np.sign(ours) * np.sign(theirs) > 0, 0.0, (ours - theirs) / 2)
            margin = np.where(np.isnan(judged), margin, judged)
    return np.abs(margin) if kind == "absolute" else margin


def implicit_margin(table: pa.Table | pa.RecordBatch, objective: Objective) -> FloatArray:
    """Implicit reward margin of every pair under the objective, signed, float64 [num_rows].

    The reward of chosen minus that of rejected, or the objective's own margin where one side alone has no reward. NaN
    or infinite where it cannot be computed.

    Raises:
        SchemaError: a column that the objective reads is missing or not numeric.
    """
    margin = OBJECTIVES[objective.name].margin
    if margin is not None:
        chosen, rejected = (quantities_of(table, objective, side) for side in COLUMN_OF)
        with np.errstate(all="ignore"):
            return margin(chosen, rejected, objective.parameters)
    reward = implicit_reward(table, objective, "chosen")
    with np.errstate(invalid="ignore", over="ignore"):
        return reward - implicit_reward(table, objective, "rejected")


def length_gap(table: pa.Table | pa.RecordBatch) -> FloatArray:
    """Tokens of chosen minus tokens of rejected, float64 [num_rows]; NaN where a count is not a whole number from 1 on.

    Raises:
        SchemaError: a token count is missing or not numeric.
    """
    chosen, rejected = _lengths(table)
    return chosen - rejected


def length_ratio(table: pa.Table | pa.RecordBatch) -> FloatArray:
    """Tokens of the longer response over those of the shorter one, float64 [num_rows]; NaN and errors as above."""
    chosen, rejected = _lengths(table)
    ratio: FloatArray = np.maximum(chosen, rejected) / np.minimum(chosen, rejected)
    return ratio


def length_of_both(table: pa.Table | pa.RecordBatch) -> FloatArray:
    """Tokens of both responses, float64 [num_rows]; NaN and errors as above."""
    chosen, rejected = _lengths(table)
    return chosen + rejected


def _lengths(table: pa.Table | pa.RecordBatch) -> tuple[FloatArray, FloatArray]:
    sides = [float_column(table, names["num_tokens"]) for names in COLUMN_OF.values()]
    with np.errstate(invalid="ignore"):
        chosen, rejected = (np.where((side >= 1) & (side - np.trunc(side) == 0), side, np.nan) for side in sides)
    return chosen, rejected


def objective_columns(objective: Objective) -> tuple[str, ...]:
    """The scored columns of both sides that the objective's implicit margin is computed from."""
    reads = OBJECTIVES[objective.name].reads
    return tuple(COLUMN_OF[side][quantity] for quantity in reads for side in COLUMN_OF)


def implicit_reward(table: pa.Table | pa.RecordBatch, objective: Objective, side: SideName) -> FloatArray:
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


def quantities_of(table: pa.Table | pa.RecordBatch, objective: Objective, side: SideName) -> Side:
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


def candidates_range(table: pa.Table | pa.RecordBatch) -> FloatArray:
    """Largest minus smallest reward of all candidates, float64 [num_rows]; NaN without candidates or without a reward.

    Raises:
        SchemaError: the column is missing or of another type.
    """
    return _of_candidates(
        table, lambda values, starts: np.maximum.reduceat(values, starts) - np.minimum.reduceat(values, starts)
    )


def candidates_mean(table: pa.Table | pa.RecordBatch) -> FloatArray:
    """Mean reward of all candidates. As `candidates_range`."""
    return _of_candidates(table, _means)


def candidates_variance(table: pa.Table | pa.RecordBatch) -> FloatArray:
    """Variance of the rewards of all candidates, ddof 0. As `candidates_range`."""

    def variances(values: FloatArray, starts: Int64Array) -> FloatArray:
        sizes = np.diff(np.append(starts, values.size))
        return _means((values - np.repeat(_means(values, starts), sizes)) ** 2, starts)

    return _of_candidates(table, variances)


def _means(values: FloatArray, starts: Int64Array) -> FloatArray:
    means: FloatArray = np.add.reduceat(values, starts) / np.diff(np.append(starts, values.size))
    return means


def _of_candidates(
    table: pa.Table | pa.RecordBatch, measure: Callable[[FloatArray, Int64Array], FloatArray]
) -> FloatArray:
    """A number of each row from the rewards of all candidates, given in one array, and where each row starts in it."""
    rewards = single_array(table, schema.REWARDS_ALL)
    found = np.full(len(rewards), np.nan)
    kind = rewards.type
    if pa.types.is_null(kind):
        return found
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise SchemaError(
            f"column {schema.REWARDS_ALL} has type {kind}; wanted a list of numbers, the rewards of all candidates."
        )
    lengths = pc.fill_null(pc.list_value_length(rewards), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    filled = np.flatnonzero(lengths)
    if filled.size:
        values = floats(rewards.flatten(), schema.REWARDS_ALL)
        # Rows without values take no room in `values`, so each start marks the end of the filled row before it.
        starts = (np.cumsum(lengths) - lengths)[filled]
        with np.errstate(invalid="ignore", over="ignore"):
            found[filled] = measure(values, starts)
    return found
