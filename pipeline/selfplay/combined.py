"""One reward of each response out of several: pairs are picked by it, and policies compared.

Selection combines margins (see `metrics.combine`). A single response has none, so a deviation stands for it: of its
reward from the mean of its prompt's responses where pairs are picked, since rewards of different prompts cannot be
compared; from the mean of all answers of the first policy where policies are compared. Raw rewards stay beside it.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import schema as s
from pipeline.config import Combine
from pipeline.metrics.columns import FloatArray
from pipeline.metrics.combine import combined, fit_members
from pipeline.metrics.normalise import Normaliser
from pipeline.steps.rows import set_column

Rewards = Sequence[Mapping[str, FloatArray]]
"""The rewards of each prompt's responses by name, float64 [num_responses], NaN where a response lacks one."""


def fit_rewards(annotated: pa.Table, combine: Combine) -> dict[str, Normaliser]:
    """What deviations are normalised by, from all prompts. Raises a DataError if a reward never differs."""
    return _fitted([_from_mean(row) for row in _rewards(annotated, combine)], combine)


def one_reward(annotated: pa.Table, combine: Combine, fitted: Mapping[str, Normaliser]) -> pa.Table:
    """Annotated candidates with a reward of each response that several make; null where it lacks one of them."""
    deviations = [_from_mean(row) for row in _rewards(annotated, combine)]
    return _with_reward(annotated, [combined(row, fitted, combine) for row in deviations])


def compared_with(answers: pa.Table, baseline: pa.Table, combine: Combine) -> pa.Table:
    """Answers with a reward of each response, in units of the baseline's answers."""
    theirs = _rewards(baseline, combine)
    means = {name: _mean([value for row in theirs for value in row[name].tolist()]) for name in combine.members}
    minus = partial(_minus, means=means)
    fitted = _fitted([*map(minus, theirs)], combine)
    ours = _rewards(answers, combine)
    return _with_reward(answers, [combined(row, fitted, combine) for row in map(minus, ours)])


def _rewards(table: pa.Table, combine: Combine) -> Rewards:
    columns = [table[s.response_rewards(name)].to_pylist() for name in combine.members]
    found = []
    for rewards in zip(*columns, strict=True):
        values = np.array([row or [] for row in rewards], dtype=np.float64)
        values[:, np.isnan(values).any(axis=0)] = np.nan
        found.append(dict(zip(combine.members, values, strict=True)))
    return found


def _mean(values: Sequence[float]) -> float:
    """Of those that are numbers; the same in any order."""
    given = [value for value in values if not math.isnan(value)]
    return math.fsum(given) / len(given) if given else math.nan


def _minus(row: Mapping[str, FloatArray], means: Mapping[str, float]) -> dict[str, FloatArray]:
    return {name: values - means[name] for name, values in row.items()}


def _from_mean(row: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    return _minus(row, {name: _mean(values.tolist()) for name, values in row.items()})


def _fitted(rows: Rewards, combine: Combine) -> dict[str, Normaliser]:
    every = {name: np.concatenate([np.zeros(0), *(row[name] for row in rows)]) for name in combine.members}
    return fit_members(every, np.ones(len(every[combine.members[0]]), dtype=np.bool_), combine)


def _with_reward(table: pa.Table, rewards: Sequence[FloatArray]) -> pa.Table:
    values: list[Any] = [[None if math.isnan(value) else value for value in row.tolist()] for row in rewards]
    return set_column(table, s.RESPONSE_REWARDS, pa.array(values, pa.list_(pa.float64())))
