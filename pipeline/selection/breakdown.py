"""Lengths of the responses, and the rows by the values of a column: one more pass over a few narrow columns.

The pass holds one part at a time. Only the lengths of sampled rows are kept.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schema
from pipeline.metrics.columns import BoolArray, FloatArray, float_column, single_array
from pipeline.metrics.moments import Moments, moments_of
from pipeline.selection.judged import Judged, shares_of
from pipeline.selection.passes import Passes
from pipeline.selection.source import Source
from pipeline.selection.view import View, rounded, share

MARGIN_RESIDUAL: Final = "margin_explicit_residual"
_TOKENS: Final = (schema.NUM_TOKENS_CHOSEN, schema.NUM_TOKENS_REJECTED)
_SIDES: Final = ("chosen", "rejected")
_MOST_COLUMNS: Final = 8
_MOST_VALUES: Final = 50
_MOST_SHOWN: Final = 20
_LONGEST_VALUE: Final = 80
_BINS: Final = 48  # of lengths: two to each doubling

Coded = tuple[npt.NDArray[np.int32], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    start: int
    tokens: tuple[FloatArray, ...]
    leads: tuple[FloatArray, ...]
    values: Mapping[str, Coded | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadPart:
    """Reads one part; picklable."""

    tokens: tuple[str, ...]
    leads: tuple[str, ...]
    columns: tuple[str, ...]

    def __call__(self, part: tuple[int, Source]) -> _Part:
        start, source = part
        names = [*self.tokens, *self.leads, *self.columns]
        table = pa.concat_tables([source.schema.empty_table().select(names), *source.tables(names)]).combine_chunks()
        return _Part(
            start=start,
            tokens=tuple(float_column(table, name) for name in self.tokens),
            leads=tuple(float_column(table, name) for name in self.leads),
            values={name: _coded(single_array(table, name)) for name in self.columns},
        )


def _coded(values: pa.Array) -> Coded | None:
    """Codes and values of a column that names groups; None if it has too many values, or texts."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    encoded = values.cast(pa.string()).dictionary_encode()
    names = encoded.dictionary
    if len(names) > _MOST_VALUES or any(len(name) > _LONGEST_VALUE for name in names.to_pylist()):
        return None
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, names.to_pylist()


@dataclass(slots=True)
class _Value:
    """What is known of the rows with one value of a column."""

    size: int = 0
    selected: int = 0
    moments: list[Moments] = field(default_factory=lambda: [Moments(), Moments()])


@dataclass(slots=True)
class _Lengths:
    """Sums over the rows of one group whose two lengths are known."""

    count: int = 0
    longer: int = 0
    sums: list[int] = field(default_factory=lambda: [0, 0])
    bins: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, _BINS), dtype=np.int64))

    def add(self, sides: Sequence[FloatArray]) -> None:
        self.count += sides[0].size
        self.longer += int(np.count_nonzero(sides[0] > sides[1]))
        for side, tokens in enumerate(sides):
            self.sums[side] += int(tokens.sum())
            places = (2 * np.log2(np.maximum(tokens, 1))).astype(np.int64)
            self.bins[side] += np.bincount(np.minimum(places, _BINS - 1), minlength=_BINS)


def breakdown(view: View, source: Source, passes: Passes) -> tuple[dict[str, Any], FloatArray]:
    """`lengths`, `judges` and `by_column` for the report; and the length gap of the rows of the sample.

    lengths: None where no row has token counts. judges: by name of the reward, only where one compared the
    pairs. by_column: of each column that names a few groups, its values by size.
    """
    names = source.schema.names
    tokens = _TOKENS if {*_TOKENS} <= {*names} else ()
    judges = {name: {group: Judged() for group in view.groups} for name in schema.judged_rewards(names)}
    leads = tuple(column for name in judges for column in schema.lead_columns(name))
    columns = _facets(view, source)
    lengths = {group: _Lengths() for group in view.groups}
    found: dict[str, dict[str | None, _Value] | None] = {name: {} for name in columns}
    gap = np.full(view.scores.size if tokens else 0, np.nan, dtype=np.float32)
    read = _ReadPart(tokens=tokens, leads=leads, columns=tuple(columns))
    parts = passes.map(read, source.split(passes.num_parts)) if tokens or leads or columns else iter(())
    for part in parts:
        if part.tokens:
            sides = _sides(view, part)
            for group, rows in view.groups.items():
                known = rows[part.start : part.start + sides[0].size] & np.isfinite(sides[0] + sides[1])
                lengths[group].add([side[known] for side in sides])
            gap[part.start : part.start + sides[0].size] = sides[0] - sides[1]
        for place, judged in enumerate(judges.values()):
            both = part.leads[2 * place : 2 * place + 2]
            for group, rows in view.groups.items():
                judged[group].add(both, part.tokens, rows[part.start : part.start + both[0].size])
        for name, coded in part.values.items():
            values = found[name]
            found[name] = None if coded is None or values is None else _with_rows(values, view, part.start, coded)
    of_sample = gap[view.sample].astype(np.float64) if tokens else np.full(view.sample.size, np.nan)
    return {
        "lengths": _lengths(view, lengths, of_sample),
        **({"judges": {name or "reward": shares_of(judged) for name, judged in judges.items()}} if judges else {}),
        "by_column": {name: _by_size(values) for name, values in found.items() if values and len(values) > 1},
    }, of_sample


def _facets(view: View, source: Source) -> list[str]:
    """Columns that may name groups: that of select.group_by, the source, and those passed through."""
    own = {*schema.scored_schema().names, schema.TEMPLATE_KWARGS, schema.SCORING}
    named = (
        *(pa.types.is_string, pa.types.is_large_string),
        *(pa.types.is_integer, pa.types.is_boolean, pa.types.is_dictionary),
    )
    kinds = {each.name: each.type for each in source.schema}
    given = [name for name in kinds if name not in own and any(test(kinds[name]) for test in named)]
    first = [name for name in (view.found.selection.query.rule.group_by,) if name in kinds]
    names = list(dict.fromkeys([*filter(None, first), *given]))[:_MOST_COLUMNS]
    # Most columns of unlike texts, such as ids, show in the first rows already.
    table = next(iter(source.tables(names)), None) if names else None
    return names if table is None else [name for name in names if _coded(single_array(table, name)) is not None]


def _sides(view: View, part: _Part) -> tuple[FloatArray, FloatArray]:
    chosen, rejected = part.tokens
    if view.found.selection.query.rule.labels != "swap":
        return chosen, rejected
    against = view.found.columns.against[part.start : part.start + chosen.size]
    return np.where(against, rejected, chosen), np.where(against, chosen, rejected)


def _with_rows(
    values: dict[str | None, _Value], view: View, start: int, coded: Coded
) -> dict[str | None, _Value] | None:
    codes, names = coded
    rows = slice(start, start + codes.size)
    for code, name in [*enumerate(names), (-1, None)]:
        there = view.ranked[rows] & (codes == code)
        if not there.any():
            continue
        value = values.setdefault(name, _Value())
        value.size += int(np.count_nonzero(there))
        value.selected += int(np.count_nonzero(there & view.selected[rows]))
        for i, margin in enumerate((view.explicit, view.implicit)):
            value.moments[i] += moments_of(margin[rows][there & np.isfinite(margin[rows])], squares=False)
    return values if len(values) <= _MOST_VALUES else None


def _by_size(values: Mapping[str | None, _Value]) -> dict[str, Any]:
    order = sorted(values, key=lambda name: (-values[name].size, name is None, name or ""))
    return {
        "num_values": len(order),
        "values": [
            {
                "value": name,
                "size": values[name].size,
                "selected": values[name].selected,
                "share": values[name].selected / values[name].size,
                schema.MARGIN_EXPLICIT: rounded(values[name].moments[0].mean()),
                schema.MARGIN_IMPLICIT: rounded(values[name].moments[1].mean()),
            }
            for name in order[:_MOST_SHOWN]
        ],
    }


def _lengths(view: View, groups: Mapping[str, _Lengths], gap: FloatArray) -> dict[str, Any] | None:
    if not groups["all"].count:
        return None
    used = np.flatnonzero(groups["all"].bins.sum(axis=0))
    bins = slice(int(used[0]), int(used[-1]) + 1)
    chosen = {"all": np.ones(gap.size, dtype=np.bool_), "selected": view.selected[view.sample]}

    margins = {schema.MARGIN_EXPLICIT: view.reward, schema.MARGIN_IMPLICIT: view.implicit}
    residual = view.found.selection.query.ranker.residual
    if residual in view.found.columns.quantities:
        margins[MARGIN_RESIDUAL] = view.found.columns.quantities[residual]

    def of(group: str, sums: _Lengths) -> dict[str, Any]:
        return {
            "count": sums.count,
            **{side: total / sums.count if sums.count else None for side, total in zip(_SIDES, sums.sums, strict=True)},
            "chosen_longer": share(sums.longer, sums.count),
            "correlation": {
                name: _correlation(margin[view.sample], gap, chosen[group]) for name, margin in margins.items()
            },
            "bins": {side: counts[bins].tolist() for side, counts in zip(_SIDES, sums.bins, strict=True)},
        }

    edges = [math.floor(2 ** (place / 2)) for place in range(bins.start, bins.stop + 1)]
    return {"edges": edges, **{group: of(group, sums) for group, sums in groups.items()}}


def _correlation(margin: FloatArray, gap: FloatArray, rows: BoolArray) -> float | None:
    """Pearson's, on the rows that have both."""
    rows = rows & np.isfinite(margin) & np.isfinite(gap)
    if np.count_nonzero(rows) < 2:
        return None
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return rounded(float(np.corrcoef(margin[rows], gap[rows])[0, 1]))
