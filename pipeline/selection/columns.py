"""The narrow columns of all rows, in memory: what rules look at, and never a text.

A row takes 8 bytes for the hash of its id and 8 for each quantity that a metric or the report reads; 16 more for its
prompt where select.per_prompt or split is set, 24 for its vote where select.disagreement is, 4 for its group.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.config import Labels
from pipeline.errors import DataError
from pipeline.metrics.columns import BoolArray, FloatArray, single_array
from pipeline.metrics.ids import HashArray, id_hashes
from pipeline.metrics.normalise import Normaliser
from pipeline.metrics.ranker import SIGNED_EXPLICIT, Quantity
from pipeline.selection.disagreement import VOTE_COLUMNS, votes_of
from pipeline.selection.labels import contradicted, swap_sides
from pipeline.selection.passes import Passes
from pipeline.selection.per_prompt import KeyArray, prompt_keys
from pipeline.selection.source import Source, check_columns
from pipeline.shown import shown
from pipeline.where import parse_where

MOST_GROUPS: Final = 1000

Codes: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to read. `quantities` whose columns are not there are left out; labels are treated before they are taken.

    by_reward: whether labels are judged by the only reward; else whoever reads says which ones are contradicted.
    """

    quantities: tuple[Quantity, ...]
    labels: Labels = "keep"
    by_reward: bool = True
    prompts: bool = False
    votes: bool = False
    wheres: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def columns(self, available: Sequence[str]) -> list[str]:
        """The scored columns to read, of those available."""
        there = [q for q in self.quantities if set(q.columns) <= set(available)]
        names = [name for quantity in there for name in quantity.columns]
        names += SIGNED_EXPLICIT.columns if self.labels != "keep" and self.by_reward else []
        judged = [name for name in schema.judged_rewards(available) if {*schema.reward_columns(name)} & {*names}]
        names += [column for name in judged for column in schema.lead_columns(name)]
        names += [schema.PROMPT] if self.prompts else []
        names += [name for where in self.wheres for name in parse_where(where).columns]
        names += [schema.SCORING] if schema.SCORING in available else []
        names += [*VOTE_COLUMNS, *({schema.TOOLS} & {*available})] if self.votes else []
        return list(dict.fromkeys([schema.ID, *names, *self.groups]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """Rows of a source in its order; every array is [num_rows].

    num_values: values that are not null, by column. hashes: of the ids. against: pairs whose label the reward
    contradicts, where labels are treated. prompts, votes: `prompt_keys` and `votes_of`, where they are wanted.
    num_agreeing: how many of several rewards prefer chosen; members: what their margins were normalised by before they
    were combined. outside: rows for which a `select.where` does not hold, by its text. groups: by column, the code of a
    row's value, -1 for null, and the values in order of code. scoring: places in `schema.SCORINGS`; empty if every
    row was to be scored.
    """

    num_values: Mapping[str, int]
    hashes: HashArray
    quantities: dict[Quantity, FloatArray]
    against: BoolArray
    prompts: KeyArray
    votes: KeyArray
    outside: Mapping[str, BoolArray]
    groups: Mapping[str, tuple[Codes, list[str]]]
    num_agreeing: FloatArray = field(default_factory=lambda: np.zeros(0))
    members: Mapping[str, Normaliser] = field(default_factory=dict)
    scoring: npt.NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, dtype=np.int8))

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return int(self.hashes.size)

    def without_values(self, quantity: Quantity) -> list[str]:
        """The columns that a quantity reads and that are null in every row. Leads take the place of rewards."""
        judged = {name for name in quantity.rewards if all(self.num_values.get(c) for c in schema.lead_columns(name))}
        instead = {column for name in judged for column in schema.reward_columns(name)}
        return [name for name in quantity.columns if self.num_values[name] == 0 and name not in instead]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadPart:
    """Reads one part; picklable."""

    wanted: Wanted
    columns: tuple[str, ...]

    def __call__(self, part: tuple[Source, BoolArray | None]) -> Columns:
        source, against = part
        pieces, start = [], 0
        for table in source.tables(self.columns):
            of_table = None if against is None else against[start : start + table.num_rows]
            pieces.append(self._of(table, of_table))
            start += table.num_rows
        return _joined(pieces or [self._of(source.schema.empty_table().select(self.columns), None)], self.wanted)

    def _of(self, table: pa.Table, against: BoolArray | None) -> Columns:
        wanted = self.wanted
        if against is None:
            judged = wanted.labels != "keep" and wanted.by_reward
            against = contradicted(table) if judged else np.zeros(table.num_rows, dtype=np.bool_)
        num_values = {name: table.num_rows - table.column(name).null_count for name in self.columns}
        outside = {where: ~parse_where(where).holds(table, "select.where") for where in wanted.wheres}
        votes = votes_of(table) if wanted.votes else _no_keys(table.num_rows)
        if wanted.labels == "swap":
            table = swap_sides(table, against)
        return Columns(
            num_values=num_values,
            hashes=id_hashes(single_array(table, schema.ID)),
            quantities={q: q.of(table) for q in wanted.quantities if set(q.columns) <= set(self.columns)},
            against=against,
            prompts=prompt_keys(single_array(table, schema.PROMPT)) if wanted.prompts else _no_keys(table.num_rows),
            votes=votes,
            outside=outside,
            groups={name: coded(single_array(table, name), name) for name in wanted.groups},
            scoring=_scoring(table),
        )


def read_columns(source: Source, wanted: Wanted, passes: Passes, against: BoolArray | None = None) -> Columns:
    """Read the columns in one pass over the parts of the source.

    against: bool [num_rows], which labels are contradicted, if it is known already.

    Raises:
        SchemaError: a column is missing or of another type.
        DataError: a column of groups has more than MOST_GROUPS values.
    """
    columns = wanted.columns(source.schema.names)
    for where in wanted.wheres:
        parse_where(where).check(source.schema, "select.where")
    check_columns(source.schema, columns)
    task = _ReadPart(wanted=wanted, columns=tuple(columns))
    parts = source.split(passes.num_parts)
    starts = [start for start, _ in parts]
    judged = [None] * len(parts) if against is None else np.split(against, starts[1:])
    items = [(part, of_part) for (_, part), of_part in zip(parts, judged, strict=True)]
    return _joined(list(passes.map(task, items)), wanted)


def _joined(parts: Sequence[Columns], wanted: Wanted) -> Columns:
    if len(parts) == 1:
        return parts[0]
    num_values: Counter[str] = Counter()
    for part in parts:
        num_values.update(part.num_values)
    return Columns(
        num_values=num_values,
        hashes=np.concatenate([part.hashes for part in parts]),
        # Taken out of the parts one by one, so that no more than one quantity is held twice.
        quantities={q: np.concatenate([part.quantities.pop(q) for part in parts]) for q in [*parts[0].quantities]},
        against=np.concatenate([part.against for part in parts]),
        prompts=np.concatenate([part.prompts for part in parts]),
        votes=np.concatenate([part.votes for part in parts]),
        outside={where: np.concatenate([part.outside[where] for part in parts]) for where in wanted.wheres},
        groups={name: _joined_groups([part.groups[name] for part in parts], name) for name in wanted.groups},
        scoring=np.concatenate([part.scoring for part in parts]),
    )


def check_group_type(column: str, kind: pa.DataType, key: str = "select.group_by") -> None:
    """Refuse a column that cannot name groups; key: of the config that names it.

    Raises:
        DataError: it holds neither text nor whole numbers nor truth values.
    """
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    named = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    if not any(test(kind) for test in named):
        raise DataError(f"{key} {shown(column)} has type {kind}; wanted text, whole numbers or true and false.")


def coded(values: pa.Array, column: str, key: str = "select.group_by") -> tuple[Codes, list[str]]:
    """The code of each value, -1 for null, and the text of each code.

    Raises:
        DataError: the column cannot name groups, or has more than MOST_GROUPS values.
    """
    check_group_type(column, values.type, key)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    encoded = values.cast(pa.string()).dictionary_encode()
    _check_num_groups(len(encoded.dictionary), column, key)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, encoded.dictionary.to_pylist()


def _scoring(table: pa.Table) -> npt.NDArray[np.int8]:
    if schema.SCORING not in table.column_names:
        return np.zeros(0, dtype=np.int8)
    places = pc.index_in(single_array(table, schema.SCORING), pa.array(schema.SCORINGS, pa.string()))
    known = places.fill_null(schema.SCORINGS.index(schema.SCORED))
    codes: npt.NDArray[np.int8] = known.to_numpy(zero_copy_only=False).astype(np.int8)
    return codes


def _joined_groups(parts: Sequence[tuple[Codes, list[str]]], column: str) -> tuple[Codes, list[str]]:
    places: dict[str, int] = {}
    joined = []
    for codes, names in parts:
        known = np.array([places.setdefault(name, len(places)) for name in names] + [-1], dtype=np.int32)
        joined.append(known[codes])
        _check_num_groups(len(places), column)
    return np.concatenate(joined), list(places)


def _check_num_groups(num_groups: int, column: str, key: str = "select.group_by") -> None:
    if num_groups > MOST_GROUPS:
        raise DataError(
            f"{key} {shown(column)} has more than {MOST_GROUPS} values; wanted a column that names a few "
            "groups, such as a domain or a source."
        )


def _no_keys(num_rows: int) -> KeyArray:
    return np.zeros((num_rows, 0), dtype=np.uint64)
