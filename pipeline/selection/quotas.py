"""How many rows each group gives to a selection of k: whole numbers that sum to k, the same for any order of groups.

Shares are integers and fractions throughout, so no rounding of floats can move a row from one group to another. Ties
go to the group whose name comes first (UTF-8 bytes, ascending).
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Final, Literal, TypeAlias

from pipeline.errors import ConfigError, DataError
from pipeline.shown import listed, quoted

QuotaRule: TypeAlias = Literal["proportional", "equal"] | Mapping[str, float]
"""proportional: by size; equal: the same for each; a mapping: by these weights, groups not named give no row."""

_MOST_NAMED: Final = 10


def allocate(rule: QuotaRule, group_sizes: Mapping[str, int], k: int) -> dict[str, int]:
    """Rows to keep of every group, in order of name; they sum to k and none exceeds its group.

    proportional: k * size / total, rounded by largest remainder. equal: equal shares; what a group is too small to give
    is shared by the others, and a remainder goes one each to the first groups by name. Weights: k * weight / sum of
    weights by largest remainder, each weight taken as the decimal it was written as.

    Raises:
        DataError: fewer than k rows in all, a weight for a group that is not there, or more rows wanted of a group than
            it has.
        ConfigError: a weight is not a positive number, or there is none.
    """
    sizes = {name: group_sizes[name] for name in sorted(group_sizes)}
    total = sum(sizes.values())
    if not 0 <= k <= total:
        raise DataError(
            f"{k} rows are wanted of {len(sizes)} groups that hold {total} together. Lower select.k or the fraction."
        )
    if k == 0:
        return dict.fromkeys(sizes, 0)
    if rule == "proportional":
        return _by_largest_remainder(sizes, k)
    if rule == "equal":
        return _levelled(sizes, k)
    return _by_given_weights(rule, sizes, k)


def _by_largest_remainder(weights: Mapping[str, int], k: int) -> dict[str, int]:
    """Shares of k by whole weights, in order of name; a share that is a whole number is never rounded up."""
    total = sum(weights.values())
    parts = {name: divmod(k * weights[name], total) for name in sorted(weights)}
    num_left = k - sum(whole for whole, _ in parts.values())
    # The sort is stable, so that equal remainders stay in order of name.
    raised = {*sorted(parts, key=lambda name: -parts[name][1])[:num_left]}
    return {name: whole + (name in raised) for name, (whole, _) in parts.items()}


def _levelled(sizes: Mapping[str, int], k: int) -> dict[str, int]:
    """The same for each group, less where a group is smaller; `sizes` in order of name."""
    quotas = dict.fromkeys(sizes, 0)
    num_left = k
    by_size = sorted(sizes, key=lambda name: sizes[name])
    for place, name in enumerate(by_size):
        share, extra = divmod(num_left, len(by_size) - place)
        if sizes[name] > share:
            first = sorted(by_size[place:])
            return {**quotas, **{name: share + (rank < extra) for rank, name in enumerate(first)}}
        quotas[name] = sizes[name]
        num_left -= sizes[name]
    return quotas


def _by_given_weights(weights: Mapping[str, float], sizes: Mapping[str, int], k: int) -> dict[str, int]:
    absent = sorted(set(weights) - set(sizes))
    if absent:
        raise DataError(
            f"the quota names {listed(absent, show=quoted)}, which no ranked row belongs to; groups there are: "
            f"{listed([*sizes], show=quoted)}. Correct the names, or leave them out."
        )
    given = _by_largest_remainder(_whole(weights), k)
    short = {name: quota for name, quota in given.items() if quota > sizes[name]}
    if short:
        first = [*short.items()][:_MOST_NAMED]
        counts = ", ".join(f"{quoted(name)}: {quota} of {sizes[name]}" for name, quota in first)
        raise DataError(
            f"{len(short)} groups have fewer ranked rows than the quota wants of them: {counts}. "
            "Lower their weights, keep fewer rows, or take quota equal, which fills up from the other groups."
        )
    return {name: given.get(name, 0) for name in sizes}


def _whole(weights: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers in the same proportions."""
    exact: dict[str, Fraction] = {}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"the quota of group {quoted(name)} is {weight}; wanted a positive number.")
        exact[name] = Fraction(str(weight))
    if not exact:
        raise ConfigError("the quota names no group. Give a weight for each group, or take proportional or equal.")
    scale = math.lcm(*(weight.denominator for weight in exact.values()))
    return {name: int(weight * scale) for name, weight in exact.items()}
