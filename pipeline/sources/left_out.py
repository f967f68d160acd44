"""Rows that the config leaves out: beyond the limit or weight of their source, or not as `source.where` says, or with a
prompt of a benchmark. They stay in the dataset as dropped rows, and do not count as faults.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from pipeline.drops import Drop, DropRow, Reason
from pipeline.errors import SchemaError
from pipeline.metrics.ids import hash_ids
from pipeline.sources.columns import Row, kept_only, undecodable_rows
from pipeline.sources.mapping import ColumnMap
from pipeline.sources.passthrough import fitted, fitted_column, passthrough_fields
from pipeline.sources.shards import SourceFile
from pipeline.where import Where, parse_where

_WHERE: Final = "source.where"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """`num_taken` of `num_rows` rows: of as many stretches of about equal length, one row each, picked by a hash.

    starts: by file, how many rows stand before it.
    """

    num_taken: int
    num_rows: int
    starts: Mapping[str, int]
    seed: int

    @classmethod
    def of(cls, files: Sequence[SourceFile], num_taken: int, seed: int) -> "Sample | None":
        """Of the rows of these files; None if there are no more than that."""
        ends = np.cumsum([0, *(file.num_rows for file in files)]).tolist()
        starts = dict(zip((file.path for file in files), ends, strict=False))
        return cls(num_taken=num_taken, num_rows=ends[-1], starts=starts, seed=seed) if num_taken < ends[-1] else None

    def left_out(self, file: str, first_row: int, num_rows: int) -> list[int]:
        """Which of these rows of a file are not taken, counted from `first_row`."""
        rows = self.starts[file] + first_row + np.arange(num_rows)
        stretches = rows * self.num_taken // self.num_rows
        starts, ends = (-(-edge * self.num_rows // self.num_taken) for edge in (stretches, stretches + 1))
        hashes = hash_ids(pa.array(stretches).cast(pa.string()), self.seed)
        picked = starts + (hashes % (ends - starts).astype(np.uint64)).astype(np.int64)
        left_out: list[int] = np.flatnonzero(rows != picked).tolist()
        return left_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """`source.where` on the columns of one source. fields: those that it looks at, with the types that they have."""

    where: Where
    fields: tuple[pa.Field, ...]
    map: ColumnMap = field(default_factory=ColumnMap)

    @classmethod
    def of(
        cls, text: str, schema: pa.Schema | None, columns: Sequence[str], sample: Sequence[Row], names: ColumnMap
    ) -> "Condition":
        """The condition `text`. schema, columns, sample: as for `passthrough_fields`. names: those of the columns.

        Raises:
            ConfigError: it does not fit the types of its columns.
            SchemaError: the source lacks a column, or a column is of a type that no condition can read.
        """
        where = parse_where(text)
        missing = [name for name in where.columns if name not in columns]
        if missing:
            raise SchemaError(f"{_WHERE} names {missing}; the source has {[*columns]}. Name columns that are there.")
        if schema is None:
            fields = tuple(_field_of_json(name, [names.value(row, name) for row in sample]) for name in where.columns)
        else:
            types = pa.schema([(name, names.column(schema.empty_table(), name).type) for name in where.columns])
            fields = passthrough_fields(where.columns, types, where.columns, ())
        where.check(pa.schema(fields), _WHERE)
        return cls(where=where, fields=fields, map=names)

    @property
    def columns(self) -> list[str]:
        """Columns of the source that it reads."""
        return self.map.reads(self.where.columns)

    def drops_of_table(self, table: pa.Table) -> dict[int, Drop]:
        """The rows of a table, as it was read, that are left out, and those that it cannot be asked of."""
        arrays = {each.name: fitted_column(self.map.column(table, each.name), each) for each in self.fields}
        odd = undecodable_rows(arrays)
        good = np.ones(table.num_rows, np.bool_)
        good[[*odd]] = False
        found = self._drops(pa.table({name: kept_only(array, good) for name, array in arrays.items()}))
        return {**found, **dict.fromkeys(odd, Drop(Reason.UNDECODABLE_TEXT))}

    def drops_of_rows(self, rows: Mapping[int, Row | Drop]) -> dict[int, Drop]:
        """The same of rows of JSON, as they were read. A value unlike those of most rows drops its row."""
        drops: dict[int, Drop] = {}
        values: dict[int, list[Any]] = {}
        for place, row in rows.items():
            try:
                if not isinstance(row, Drop):
                    values[place] = [_fitted(self.map.value(row, each.name), each) for each in self.fields]
            except DropRow as drop:
                drops[place] = Drop(drop.reason)
        columns = [[of_row[i] for of_row in values.values()] for i in range(len(self.fields))]
        arrays = [pa.array(column, each.type) for column, each in zip(columns, self.fields, strict=True)]
        places = [*values]
        found = self._drops(pa.table(arrays, schema=pa.schema(self.fields)))
        return drops | {places[index]: drop for index, drop in found.items()}

    def _drops(self, table: pa.Table) -> dict[int, Drop]:
        left_out = np.flatnonzero(~self.where.holds(table, _WHERE))
        return dict.fromkeys(left_out.tolist(), Drop(Reason.FILTERED))


def _field_of_json(name: str, values: Sequence[Any]) -> pa.Field:
    """The field for most of the values. Objects and lists keep their form, which passing through turns into text."""
    (found,) = passthrough_fields([name], None, [name], [{name: value} for value in values])
    if found.metadata is None:
        return found
    try:
        return pa.field(name, pa.infer_type([value for value in values if isinstance(value, (dict, list))]))
    except pa.ArrowException:
        return found


def _fitted(value: Any, to: pa.Field) -> Any:
    """The value as one that the field can hold, or DropRow."""
    if value is None or not (pa.types.is_struct(to.type) or pa.types.is_list(to.type)):
        return fitted(value, to)
    try:
        return pa.scalar(value, to.type).as_py()
    except (pa.ArrowException, OverflowError, ValueError):
        raise DropRow(Reason.PASSTHROUGH_TYPE) from None
