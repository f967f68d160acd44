"""What a table of any format is to a publisher, and which columns it can take."""

from collections.abc import Callable
from typing import Final, Protocol

import pyarrow as pa
from pyarrow import types as pat

from pipeline import config
from pipeline.config.table import Mode
from pipeline.errors import ConfigError, SchemaError, TemporaryError
from pipeline.exports.tables.rows import Rows
from pipeline.shown import listed, shown
from pipeline.sources.columns import TEXTS, plain_type

FINGERPRINT: Final = "alignpot.fingerprint"
"""Key of a commit: the digest that tells its rows from others."""
MODE: Final = "alignpot.mode"
PUBLISHED: Final = "alignpot.published."
"""Start of the keys of a table, one for each digest whose rows were published since the last replacement, of their
partition if there is one. Unlike old commits, they are never cleaned up."""

_Check = Callable[[pa.DataType], bool]
_ANYWHERE: Final[tuple[_Check, ...]] = (
    *TEXTS,
    *(pat.is_boolean, pat.is_int32, pat.is_int64, pat.is_float32, pat.is_float64),
    *(pat.is_binary, pat.is_large_binary, pat.is_date32, pat.is_decimal128),
    lambda kind: pat.is_timestamp(kind) and kind.unit == "us" and kind.tz in (None, "UTC"),
)
_PARTITIONING: Final[tuple[_Check, ...]] = (pat.is_string, pat.is_signed_integer, pat.is_date32, pat.is_boolean)
_LISTS: Final = (pat.is_list, pat.is_large_list, pat.is_fixed_size_list)
_SMALL: Final = (pat.is_int8, pat.is_int16)
_FURTHER: Final[dict[str, tuple[_Check, ...]]] = {
    "iceberg": (),
    "delta": _SMALL,
    "lance": (
        *_SMALL,
        *(pat.is_unsigned_integer, pat.is_float16, pat.is_fixed_size_binary),
        *(pat.is_date64, pat.is_time, pat.is_timestamp, pat.is_duration),
    ),
}


class Overtaken(TemporaryError):  # noqa: N818 - the table is looked at again
    """The table has changed since it was opened, or it is not known whether the commit was made."""


class Table(Protocol):
    """A table as it was when it was opened; perhaps it does not exist yet."""

    @property
    def columns(self) -> pa.Schema | None:
        """Its columns; None if there is no table."""

    @property
    def partitioned_by(self) -> tuple[str, ...]:
        """The columns whose values, as they are, divide the rows into partitions."""

    def holds(self, rows: Rows, mode: Mode) -> bool:
        """Whether nothing is left to do: the rows were appended or, to replace, are all of the table or partition."""

    def commit(self, rows: Rows, mode: Mode) -> str:
        """Write the files and make one commit, which holds the mark; returns the version that it made.

        Raises:
            Overtaken: nothing was committed, or it is not known.
        """


def partition_of(table: Table, target: config.Table, where: str) -> dict[str, pa.Scalar]:
    """The value of each column that the table is partitioned by, as the table holds it.

    Raises:
        ConfigError: the table is not there, it is partitioned by other columns, or a value is none of its column.
        SchemaError: partitions of a type that is not supported.
    """
    given = target.partition or {}
    if {*given} != {*table.partitioned_by}:
        by = f"is partitioned by {listed(table.partitioned_by)}" if table.partitioned_by else "has no partitions"
        raise ConfigError(
            f"{where}: {'there is no table yet' if table.columns is None else f'the table {by}'}, and the partition "
            f"that is given names {listed([*given]) or 'no column'}. Give a value for each column that partitions the "
            "table, as in partition: {day: 2026-11-29}. A partitioned table must be created before."
        )
    return {name: _value(table, name, given[name], where) for name in table.partitioned_by}


def _value(table: Table, name: str, text: str, where: str) -> pa.Scalar:
    kind = _plain(table.columns.field(name).type) if table.columns is not None else pa.null()
    if not any(check(kind) for check in _PARTITIONING):
        raise SchemaError(
            f"{where} is partitioned by {name}, which is {kind}. Supported are texts, whole numbers, dates and "
            "booleans. Give another table."
        )
    try:
        return pa.scalar(text).cast(kind)
    except pa.ArrowInvalid:
        raise ConfigError(f"{where}: partition: {name} is {kind}, and {shown(text)} is none. Correct it.") from None


def check_types(rows: Rows, kind: str, where: str) -> None:
    """Raise a SchemaError that names the columns which a table of this kind cannot hold."""
    unfit = [f"{field.name} ({field.type})" for field in rows.schema if not _holds(field.type, kind)]
    if unfit:
        raise SchemaError(
            f"{where}: a table of {kind} cannot hold {listed(unfit)}. Cast the columns in the source, or leave "
            "them out of source.passthrough."
        )


def check_columns(table: Table, rows: Rows, where: str) -> None:
    """Raise a SchemaError that names the columns which do not fit those of the table. It may have further ones."""
    there = table.columns
    if there is None:
        return
    lacking = [name for name in rows.schema.names if name not in there.names]
    others = [
        f"{field.name} ({there.field(field.name).type}, here {field.type})"
        for field in rows.schema
        if field.name in there.names and _plain(there.field(field.name).type) != _plain(field.type)
    ]
    needed = [field.name for field in there if not field.nullable and field.name not in rows.schema.names]
    problems = [
        *([f"the table lacks {listed(lacking)}"] if lacking else []),
        *([f"other types have {listed(others)}"] if others else []),
        *([f"the rows lack {listed(needed)}"] if needed else []),
    ]
    if problems:
        raise SchemaError(f"{where}: {'; '.join(problems)}. Change the table, or give another one.")


def _plain(kind: pa.DataType) -> pa.DataType:
    if pat.is_large_binary(kind):
        return pa.binary()
    return pa.map_(_plain(kind.key_type), _plain(kind.item_type)) if pat.is_map(kind) else plain_type(kind)


def _holds(kind: pa.DataType, of: str) -> bool:
    if pat.is_dictionary(kind):
        return _holds(kind.value_type, of)
    if any(is_list(kind) for is_list in _LISTS):
        return _holds(kind.value_type, of)
    if pat.is_map(kind):
        return _holds(kind.key_type, of) and _holds(kind.item_type, of)
    if pat.is_struct(kind):
        return kind.num_fields > 0 and all(_holds(child.type, of) for child in kind)
    return any(check(kind) for check in (*_ANYWHERE, *_FURTHER[of]))
