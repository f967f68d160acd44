"""One explicit margin out of those of several rewards.

Rewards of different models are in different units, and those of different prompts cannot be compared, so margins are
combined, not rewards. A margin and its normalised form have the same sign: 0 stays a tie. For that, the set counts as
if each pair stood in it in both orders, for which side is chosen is the label's doing and not the reward's. Then the
mean of the margins is 0, and

    zscore   margin / root of the mean square over the set
    rank     sign of the margin x share of the set whose magnitude is below its own (half of those equal to it)
    none     the margin

The sums are exact (`moments`): no order of the rows moves a bit, and exchanged sides change no scale. The rules work on
each row by itself. All but min and mean-minus-std give the negative where the sides are exchanged; these two look for
the order that the least certain reward still holds to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.metrics.columns import BoolArray, FloatArray
from pipeline.metrics.moments import moments_of
from pipeline.metrics.normalise import Normaliser, Ranks, Scale, checked_scale

if TYPE_CHECKING:
    from pipeline.config import Combine

Margins = Mapping[str, FloatArray]
"""Margins by the name of the reward, each float64 [num_rows]."""


def fit_members(margins: Margins, rows: BoolArray, combine: Combine) -> dict[str, Normaliser]:
    """What the margins are normalised by, from those of these rows that are finite.

    Raises:
        DataError: all margins of a reward are 0.
    """
    found: dict[str, Normaliser] = {}
    for name, values in margins.items() if combine.normalise != "none" else ():
        given = values[rows & np.isfinite(values)]
        if combine.normalise == "rank":
            found[name] = Ranks(ordered=np.sort(np.abs(given)))
        else:
            spread = replace(moments_of(given), total=0).std()
            found[name] = checked_scale(0.0, spread, name=f"the margin of reward {name}", num_rows=given.size)
    return found


def combined(margins: Margins, fitted: Mapping[str, Normaliser], combine: Combine) -> FloatArray:
    """The combined margin of every row, float64 [num_rows]; NaN or infinite where one of them is. No rows are mixed."""
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = [_normalised(margins[name], fitted.get(name)) for name in combine.members]
        return RULES[combine.rule](scaled, combine) + 0.0


def num_agreeing(margins: Margins, combine: Combine) -> FloatArray:
    """How many of the rewards prefer chosen to rejected, whole numbers, float64 [num_rows]; a tie prefers none."""
    return _total([(margins[name] > 0).astype(np.float64) for name in combine.members])


def _normalised(values: FloatArray, fitted: Normaliser | None) -> FloatArray:
    if isinstance(fitted, Scale):
        return fitted.apply(values)
    return values if fitted is None else np.sign(values) * fitted.apply(np.abs(values))


def _total(values: Sequence[FloatArray]) -> FloatArray:
    """The sum in the order of the members: numpy's own order depends on the number of rows."""
    return reduce(np.add, values)


def _mean(values: Sequence[FloatArray], _: Combine) -> FloatArray:
    return _total(values) / len(values)


def _mean_minus_std(values: Sequence[FloatArray], combine: Combine) -> FloatArray:
    mean = _mean(values, combine)
    return mean - combine.penalty * np.sqrt(_total([(each - mean) ** 2 for each in values]) / len(values))


def _weighted(values: Sequence[FloatArray], combine: Combine) -> FloatArray:
    weights = combine.weights or {}
    return _total([weights[name] * each for name, each in zip(combine.members, values, strict=True)])


def _median(values: Sequence[FloatArray], _: Combine) -> FloatArray:
    found: FloatArray = np.median(np.stack(values), axis=0)
    return found


RULES: Final[Mapping[str, Callable[[Sequence[FloatArray], Combine], FloatArray]]] = {
    "mean": _mean,
    "min": lambda values, _: reduce(np.minimum, values),
    "median": _median,
    "weighted": _weighted,
    "mean-minus-std": _mean_minus_std,
    "majority": lambda values, combine: _mean([np.sign(each) for each in values], combine),
}
"""By name: from the normalised margins of the members to one. majority: the mean of the signs."""
