"""The rules of the select section: score bounds, bands, lengths, per_prompt, how many by quotas, deduplicate, in order.

Labels are treated when the columns are read. Every rule works on the scores of all rows, in which NaN stands for a row
that is no candidate (any more).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.config import Select
from pipeline.errors import ConfigError, DataError
from pipeline.metrics.columns import FloatArray
from pipeline.selection.bands import inside_band
from pipeline.selection.columns import Columns
from pipeline.selection.near_duplicates import NearDuplicates, row_texts
from pipeline.selection.per_prompt import beyond_cap
from pipeline.selection.quotas import allocate
from pipeline.selection.ranking import Ranking
from pipeline.selection.source import Positions, Source, take_all
from pipeline.selection.threshold import Cut, IdsAt, best
from pipeline.shown import shown

BEYOND_PROMPT_CAP: Final = "beyond_per_prompt"
OUTSIDE_BAND: Final = "outside_score_band"
OUTSIDE_QUANTILES: Final = "outside_band"
OUTSIDE_LENGTHS: Final = "outside_length_bounds"
NO_GROUP: Final = "group_null"
NO_QUOTA: Final = "group_without_quota"
SIMILAR: Final = "text_of_a_better_row"

_TEXTS: Final = (schema.ID, schema.PROMPT, schema.CHOSEN, schema.REJECTED)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The rows that the rules keep, ascending; the cut of each group (one cut where there are no groups).

    excluded: rows that a rule leaves out before it counts, by reason.
    """

    positions: Positions
    cuts: Mapping[str | None, Cut]
    excluded: dict[str, int]


def choose(source: Source, columns: Columns, ranking: Ranking) -> Choice:
    """Apply the rules.

    Raises:
        DataError: more rows are wanted than are left, none would be kept, or skipped rows might be.
        IntegrityError: ids repeat.
    """
    choice = _chosen(source, columns, ranking)
    check_scored(ranking, choice.positions)
    return choice


def _chosen(source: Source, columns: Columns, ranking: Ranking) -> Choice:
    rule, of_places = ranking.query.rule, partial(ids_at, source)
    scores, excluded, groups = contest(columns, ranking, of_places)
    if rule.deduplicate == "none":
        positions, cuts = groups.best(scores, of_places)
        return Choice(positions=positions, cuts=cuts, excluded=excluded)
    index = NearDuplicates(rule.deduplicate, rule.similarity)
    before: Positions = np.zeros(0, dtype=np.int64)
    excluded[SIMILAR] = 0
    scores = scores.copy()
    while True:
        positions, cuts = groups.best(scores, of_places)
        refused = _refused(index, source, np.setdiff1d(positions, before, assume_unique=True), scores)
        if not refused.size:
            return Choice(positions=positions, cuts=cuts, excluded=excluded)
        excluded[SIMILAR] += refused.size
        before = positions
        scores[refused] = np.nan
        groups.recount(scores, rule)


def contest(columns: Columns, ranking: Ranking, ids_at: IdsAt) -> tuple[FloatArray, dict[str, int], "Groups"]:
    """The scores of the rows among which the best are looked for, NaN for the others; how many rules leave out; groups.

    Raises:
        DataError: more rows are wanted than are left, or none would be kept.
    """
    rule = ranking.query.rule
    scores, excluded = candidates(ranking)
    if rule.per_prompt is not None:
        beyond = beyond_cap(columns.prompts, scores, rule.per_prompt, ids_at)
        scores = scores.copy()
        scores[beyond] = np.nan
        excluded[BEYOND_PROMPT_CAP] = beyond.size
    groups = Groups.of(rule, columns, scores)
    if rule.group_by is not None:
        excluded[NO_GROUP] = groups.num_without
        excluded[NO_QUOTA] = sum(rows.size for name, rows in groups.rows.items() if not groups.wanted.get(name))
    return scores, excluded, groups


def candidates(ranking: Ranking) -> tuple[FloatArray, dict[str, int]]:
    """Scores of the rows inside all bounds and bands, NaN for the others; how many are outside, by reason, if set."""
    rule, scores = ranking.query.rule, ranking.highest
    excluded, num_left = {}, ranking.num_ranked
    if rule.min_score is not None or rule.max_score is not None:
        low = -math.inf if rule.min_score is None else rule.min_score
        high = math.inf if rule.max_score is None else rule.max_score
        scores = np.where((scores >= low) & (scores <= high), scores, np.nan)
        excluded[OUTSIDE_BAND] = num_left - int(np.count_nonzero(~np.isnan(scores)))
    num_left -= sum(excluded.values())
    inside = {term: inside_band(ranking.query, term, ranking.fitted.bands, ranking.quantities, scores)
              for term in rule.band or {}}  # fmt: skip
    if inside:
        scores = np.where(np.logical_and.reduce([*inside.values()]), scores, np.nan)
        excluded[OUTSIDE_QUANTILES] = num_left - int(np.count_nonzero(~np.isnan(scores)))
        num_left -= excluded[OUTSIDE_QUANTILES]
    for quantity, most in ranking.query.lengths.items():
        scores = np.where(np.abs(ranking.quantities[quantity]) <= most, scores, np.nan)
        excluded[OUTSIDE_LENGTHS] = num_left - int(np.count_nonzero(~np.isnan(scores)))
    return scores, excluded


def not_determined(ranking: Ranking) -> Positions:
    """Skipped rows of which is not known whether their scores lie within the bounds of scores, ascending."""
    rule, bounds = ranking.query.rule, ranking.bounds
    rows = np.zeros(bounds.size, dtype=np.bool_)
    if rule.min_score is not None:
        rows |= bounds >= rule.min_score
    if rule.max_score is not None:
        rows |= bounds > rule.max_score
    for quantity, most in ranking.query.lengths.items():
        rows = rows & (np.abs(ranking.quantities[quantity]) <= most) if rows.size else rows
    return np.flatnonzero(rows)


def check_scored(ranking: Ranking, positions: Positions) -> None:
    """Refuse a selection, made with the bounds of skipped rows as their scores, that their scores could change.

    It is the one that all scores give if it keeps no skipped row: any other row has a lower bound than those it keeps.

    Raises:
        DataError: it keeps skipped rows, or the bounds of scores might.
    """
    kept = positions[~np.isnan(ranking.bounds[positions])] if ranking.bounds.size else positions[:0]
    needed = np.union1d(kept, not_determined(ranking))
    if needed.size:
        raise DataError(
            f"{needed.size} rows or more that this selection may keep were skipped by score.lazy. Run `alignpot run` "
            "with this config: it scores what is missing, and no row again."
        )


def num_selected(rule: Select, num_rows: int) -> int:
    """How many of the rows that are left the rule keeps: k, the floor of fraction * rows, or all of them.

    The fraction is taken as the decimal it was written as: 0.29 of 100 rows is 29, where the product of floats,
    28.999999999999996, would be cut to 28.

    Raises:
        DataError: that is none, or more than there are.
    """
    if rule.k is not None:
        if rule.k > num_rows:
            raise DataError(
                f"select.k is {rule.k}, but only {num_rows} rows can be ranked. Lower it, or give a fraction."
            )
        return rule.k
    if rule.fraction is None:
        if rule.min_score is None and rule.max_score is None and rule.band is None:
            raise ConfigError(
                "nothing says how many rows to keep: give select.fraction, k, min_score, max_score or band."
            )
        if num_rows == 0:
            bounds = {name: getattr(rule, name) for name in ("min_score", "max_score", "band")}
            set_ones = " and ".join(f"select.{name} {value}" for name, value in bounds.items() if value is not None)
            raise DataError(
                f"no row has a score inside {set_ones}. See the scores in the report of a selection without these "
                "bounds."
            )
        return num_rows
    k = math.floor(Fraction(str(rule.fraction)) * num_rows)
    if k == 0:
        raise DataError(
            f"select.fraction {rule.fraction} of {num_rows} ranked rows is no row at all. Raise it, or give k."
        )
    return k


@dataclass(slots=True, kw_only=True, eq=False)
class Groups:
    """How many candidates are wanted of each group, in order of name; None is the group of all without group_by.

    rows: positions of a group's candidates. sizes: how many there are. whole: all candidates are kept.
    """

    rows: Mapping[str | None, Positions]
    sizes: dict[str | None, int]
    wanted: dict[str | None, int]
    whole: bool
    num_without: int = 0

    @classmethod
    def of(cls, rule: Select, columns: Columns, scores: FloatArray) -> "Groups":
        """Those of these candidates. Raises a DataError as `num_selected` and `allocate`."""
        whole = rule.fraction is None and rule.k is None
        if rule.group_by is None:
            size = int(np.count_nonzero(~np.isnan(scores)))
            return cls(rows={}, sizes={None: size}, wanted={None: num_selected(rule, size)}, whole=whole)
        codes, names = columns.groups[rule.group_by]
        rows = np.flatnonzero(~np.isnan(scores))
        order = np.argsort(codes[rows], kind="stable")
        borders = np.searchsorted(codes[rows][order], np.arange(len(names) + 1))
        found: dict[str | None, Positions] = {
            name: rows[order[borders[i] : borders[i + 1]]] for i, name in enumerate(names)
        }
        sizes = {name: found[name].size for name in names if found[name].size}
        if not sizes:
            raise DataError(
                f"select.group_by {shown(rule.group_by)} is null in every row that could be kept. Name another column."
            )
        shares = allocate(rule.quotas, sizes, num_selected(rule, sum(sizes.values())))
        wanted: dict[str | None, int] = {name: share for name, share in shares.items() if share}
        return cls(
            rows=found,
            sizes={key: rows.size for key, rows in found.items()},
            wanted=wanted,
            whole=whole,
            num_without=int(borders[0]),
        )

    def best(self, scores: FloatArray, ids_at: IdsAt) -> tuple[Positions, dict[str | None, Cut]]:
        """The best rows of every group, ascending, and the cuts."""
        chosen, cuts = [], {}
        for name, k in self.wanted.items():
            if self.whole:
                chosen.append(np.flatnonzero(~np.isnan(scores)))
                cuts[name] = Cut(threshold=-math.inf, k=k, num_candidates=self.sizes[name])
            elif name is None:
                places, cuts[name] = best(scores, k, ids_at)
                chosen.append(places)
            else:
                rows = self.rows[name]
                places, cuts[name] = best(scores[rows], k, partial(_ids_in, ids_at, rows))
                chosen.append(rows[places])
        return np.sort(np.concatenate(chosen)), cuts

    def recount(self, scores: FloatArray, rule: Select) -> None:
        """Count the candidates again. A group that runs short gives what it has, unless select.k asks for a number."""
        for name, wanted in self.wanted.items():
            left = scores if name is None else scores[self.rows[name]]
            self.sizes[name] = size = int(np.count_nonzero(~np.isnan(left)))
            self.wanted[name] = size if self.whole else min(wanted, size)
            if rule.k is not None and size < wanted:
                group = "" if name is None else f" of group {shown(name)}"
                raise DataError(
                    f"{wanted} rows{group} are wanted, but without repeated texts only {size} are left. Lower "
                    "select.k, raise select.similarity, or give a fraction, which keeps what there is."
                )


def ids_at(source: Source, positions: Positions) -> pa.Array:
    """The ids of the rows at ascending positions."""
    return take_all(source, positions, [schema.ID]).column(schema.ID).combine_chunks()


def _ids_in(ids_at: IdsAt, rows: Positions, places: Positions) -> pa.Array:
    return ids_at(rows[places])


def _refused(index: NearDuplicates, source: Source, positions: Positions, scores: FloatArray) -> Positions:
    """Those of the rows that repeat a better one, ascending; rows are judged best first, ties by id."""
    table = take_all(source, positions, _TEXTS)
    ids, texts = table.column(schema.ID).to_pylist(), row_texts(table)
    order = sorted(range(len(ids)), key=lambda i: (-scores[positions[i]], ids[i]))
    kept = index.admit([texts[i] for i in order])
    return np.sort(positions[np.array(order, dtype=np.int64)[~kept]])
