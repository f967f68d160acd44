"""A selection's rule applied to other rows, statistics and thresholds as they were: a filter for a stream.

What a former run kept in its manifest is all it takes. No threshold is looked for; rows are counted and kept one by
one, whatever other rows come with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from pipeline.config import Select
from pipeline.errors import ConfigError, IntegrityError
from pipeline.metrics.fitted import fitted_of
from pipeline.selection.counts import count_candidates
from pipeline.selection.passes import Passes
from pipeline.selection.selection import GroupCut, Selection
from pipeline.selection.source import Part
from pipeline.selection.streams import Candidates
from pipeline.selection.survey import Survey, SurveyTask, check_rankable
from pipeline.selection.tally import TallyTask, empty_tally
from pipeline.selection.top_k import Query, excluded_rows, num_rows_read

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
        "objective": None if query.objective is None else query.objective.model_dump(mode="json"),
        "metric": query.metric.model_dump(mode="json"),
    }
    given = {key: getattr(query.rule, key) for key in query.rule.model_fields_set - _OWN_KEYS}
    differing = [name for name in ours if ours[name] != theirs[name]]
    differing += [f"select.{key}" for key, value in given.items() if getattr(rule, key) != value]
    if differing:
        name = differing[0]
        section, _, key = name.partition(".")
        there = former["select"][key] if key else theirs[name]
        here = given[key] if key else ours[name]
        raise ConfigError(
            f"select.stats_from names a selection whose {name} is {there}; this config has {here}. Thresholds hold for "
            f"one {section} alone: set the same, or leave stats_from out."
        )
    if rule.per_prompt is not None or rule.deduplicate != "none":
        raise ConfigError(
            "select.stats_from names a selection made with per_prompt or deduplicate, which compare rows with each "
            "other and cannot be applied row by row. Name one without them."
        )
    return rule


def apply_former(passes: Passes, parts: Sequence[Part], former: Mapping[str, Any], query: Query) -> Selection:
    """The rule of a former selection, with the counts that it has on these rows; query.rule is its `former_rule`.

    Raises:
        DataError: no row can be ranked.
        IntegrityError: the former selection is damaged.
    """
    try:
        fitted = fitted_of(former["fitted"])
        groups = tuple(former["groups"] or ())
        cuts = [_cut(former["groups"][name]) for name in groups] if groups else [_cut(former)]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(error) from None
    survey = Survey()
    for [of_part] in passes.run(SurveyTask(rankers=(query.ranker,), bands=((),)), parts):
        survey.merge(of_part)
    check_rankable(survey, query.ranker, labels=query.rule.labels)
    duplicates = np.concatenate([part.duplicates for part in parts])
    rule = query.rule
    candidates = Candidates(
        ranker=query.ranker, fitted=fitted, min_score=rule.min_score, max_score=rule.max_score, groups=groups
    )
    [counts] = count_candidates(passes, parts, [candidates], [rule.group_by])
    sizes = [counts[name] for name in groups] if groups else [counts[None]]
    cuts = [replace(cut, num_candidates=size) for cut, size in zip(cuts, sizes, strict=True)]
    selection = Selection(
        objective=query.objective,
        metric=query.metric,
        select=query.rule,
        fitted=fitted,
        cuts=cuts,
        groups=groups,
        num_rows=num_rows_read(survey, rule, duplicates),
        num_ranked=survey.num_ranked,
        excluded=excluded_rows(survey, query, candidates, counts, duplicates),
        num_contradicted=survey.num_contradicted,
        duplicates=duplicates,
    )
    total = empty_tally(selection)
    for [tally] in passes.run(TallyTask(selections=[selection]), parts):
        total.merge(tally)
    counted = [replace(cut, k=num_kept) for cut, num_kept in zip(cuts, total.num_kept.tolist(), strict=True)]
    return replace(selection, cuts=counted, id_digest=f"{total.digest % 2**64:016x}")


def _cut(value: Mapping[str, Any]) -> GroupCut:
    threshold = -np.inf if value["threshold"] is None else float(value["threshold"])
    return GroupCut(threshold=threshold, boundary_id=value["boundary_id"], k=0, num_candidates=0)


def _damaged(error: Exception) -> IntegrityError:
    return IntegrityError(
        f"select.stats_from names a manifest without a usable selection ({type(error).__name__}). Name the "
        "_SUCCESS.json of a subset that this version of alignpot wrote."
    )
