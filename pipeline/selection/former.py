"""The rule of a former selection applied to other rows: its statistics and thresholds stay as they were.

It takes what the former run wrote into its manifest, and judges each row by itself.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Select
from pipeline.errors import ConfigError, IntegrityError
from pipeline.metrics.normalise import Fitted
from pipeline.selection.columns import Columns
from pipeline.selection.ranking import Query, rank
from pipeline.selection.rules import NO_GROUP, NO_QUOTA, Choice, candidates, check_scored
from pipeline.selection.selection import Found, found
from pipeline.selection.source import Positions, Source, take_all
from pipeline.selection.threshold import Cut

_OWN_KEYS: Final = frozenset({"stats_from", "engine"})


def former_rule(former: Mapping[str, Any], query: Query) -> Select:
    """The select section of a former selection, as it was.

    Raises:
        ConfigError: it was made for another objective or metric, or by rules that look at all rows; or `query` sets
            another rule.
        IntegrityError: it is damaged.
    """
    try:
        theirs = {"objective": former["objective"], "metric": former["metric"]}
        rule = Select(**{key: value for key, value in former["select"].items() if key not in _OWN_KEYS})
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(error) from None
    ours = {
        "objective": query.objective.model_dump(mode="json"),
        "metric": query.metric.model_dump(mode="json"),
    }
    given = {key: getattr(query.rule, key) for key in query.rule.model_fields_set - _OWN_KEYS}
    differing = [name for name in ours if ours[name] != theirs[name]]
    differing += [f"select.{key}" for key, value in given.items() if getattr(rule, key) != value]
    if differing:
        name = differing[0]
        section, _, key = name.partition(".")
        there = former["select"].get(key) if key else theirs[name]
        here = given[key] if key else ours[name]
        raise ConfigError(
            f"select.stats_from names a selection whose {name} is {there}; this config has {here}. Thresholds hold for "
            f"one {section} alone: set the same, or leave stats_from out."
        )
    by_rank = query.metric.name == "potential" and query.metric.normalise == "rank"
    by_rank |= query.metric.combine is not None and query.metric.combine.normalise == "rank"
    by_votes = rule.disagreement in {"majority", "drop"}
    if rule.per_prompt is not None or rule.deduplicate != "none" or by_rank or by_votes:
        raise ConfigError(
            "select.stats_from names a selection made with disagreement, per_prompt, deduplicate or normalise: rank. "
            "These compare rows with each other and cannot be applied row by row. Name a selection without them."
        )
    return rule


def apply_former(
    source: Source, columns: Columns, duplicates: Positions, former: Mapping[str, Any], query: Query
) -> Found:
    """The rule of a former selection applied to these rows; query.rule is its `former_rule`.

    Raises:
        DataError: no row can be ranked.
        IntegrityError: the former selection is damaged.
    """
    fitted = former_fitted(former)
    try:
        cuts = {name: _cut(cut) for name, cut in (former["groups"] or {None: former}).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(error) from None
    ranking = rank(columns, query, duplicates, fitted)
    scores, excluded = candidates(ranking)
    groups = {None: ~np.isnan(scores)}
    if query.rule.group_by is not None:
        codes, names = columns.groups[query.rule.group_by]
        groups = {name: ~np.isnan(scores) & (codes == _code(names, name)) for name in cuts}
        excluded[NO_GROUP] = int(np.count_nonzero(~np.isnan(scores) & (codes < 0)))
        num_grouped = int(np.count_nonzero(~np.isnan(scores))) - excluded[NO_GROUP]
        excluded[NO_QUOTA] = num_grouped - sum(int(np.count_nonzero(rows)) for rows in groups.values())
    chosen = []
    for name, cut in cuts.items():
        keep = groups[name] & (scores > cut.threshold)
        tied = np.flatnonzero(groups[name] & (scores == cut.threshold))
        if cut.boundary_id is not None and tied.size:
            ids = take_all(source, tied, [schema.ID]).column(schema.ID)
            tied = tied[pc.less_equal(ids, cut.boundary_id).to_numpy(zero_copy_only=False).astype(np.bool_)]
        keep[tied] = True
        chosen.append(np.flatnonzero(keep))
        cuts[name] = replace(cut, k=chosen[-1].size, num_candidates=int(np.count_nonzero(groups[name])))
    positions = np.sort(np.concatenate(chosen))
    check_scored(ranking, positions)
    return found(columns, ranking, Choice(positions=positions, cuts=cuts, excluded=excluded))


def former_fitted(former: Mapping[str, Any]) -> Fitted:
    """What a former selection took from its set. Raises an IntegrityError if it is damaged."""
    try:
        return Fitted.from_dict(former["fitted"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(error) from None


def _cut(value: Mapping[str, Any]) -> Cut:
    threshold = -np.inf if value["threshold"] is None else float(value["threshold"])
    return Cut(threshold=threshold, boundary_id=value["boundary_id"], k=0, num_candidates=0)


def _code(names: list[str], name: str | None) -> int:
    return names.index(name) if name in names else -2


def _damaged(error: Exception) -> IntegrityError:
    return IntegrityError(
        f"select.stats_from names a manifest without a usable selection ({type(error).__name__}). Name the "
        "_SUCCESS.json of a subset that this version of alignpot wrote."
    )
