"""The columns of a source: what kind of thing each one holds.

Formats ask for kinds, not for Arrow types. So one rule serves Parquet, Arrow and JSON Lines.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pat

from pipeline.errors import SchemaError
from pipeline.schema import TOOL_CALLS
from pipeline.shown import shown

Row = Mapping[str, Any]


class Kind(StrEnum):
    """Kind of a column. `turns` is a list of messages or a single message object."""

    TEXT = "text"
    TURNS = "turns"
    TEXTS = "texts"
    NUMBER = "number"
    NUMBERS = "numbers"
    FLAG = "flag"
    NULL = "null"
    OTHER = "other"


Columns = Mapping[str, Kind]

_COLUMNS_SHOWN: Final = 200
TEXTS: Final = (pat.is_string, pat.is_large_string, pat.is_string_view)
LISTS: Final = (pat.is_list, pat.is_large_list, pat.is_fixed_size_list, pat.is_list_view, pat.is_large_list_view)
_KIND_OF_LIST: Final = {
    Kind.TEXT: Kind.TEXTS,
    Kind.NUMBER: Kind.NUMBERS,
    Kind.TURNS: Kind.TURNS,
    Kind.NULL: Kind.NULL,
}

_PYTHON_TYPES: Final[Mapping[Kind, Any]] = {
    Kind.NULL: type(None),
    Kind.FLAG: bool,
    Kind.TEXT: str,
    Kind.NUMBER: (int, float),
}
"""In this order: a bool is an int, too."""


def described(columns: Columns) -> str:
    """The columns with their kinds, for a message."""
    first = [f"{shown(name)} ({kind})" for name, kind in itertools.islice(columns.items(), _COLUMNS_SHOWN)]
    more = [f"and {len(columns) - len(first):,} more"] if len(columns) > len(first) else []
    return ", ".join([*first, *more]) or "no columns"


def kinds_of(schema: pa.Schema | None, rows: Sequence[Row]) -> dict[str, Kind]:
    """Kind of every column by the schema; by the sampled rows where there is no schema or its type holds JSON."""
    seen = kinds_of_rows(rows)
    if schema is None:
        return seen
    return {
        field.name: seen.get(field.name, Kind.OTHER) if holds_json(field.type) else _kind_of_type(field.type)
        for field in schema
    }


def kinds_of_rows(rows: Iterable[Row]) -> dict[str, Kind]:
    """Kind of every key in rows of JSON: the commonest one of its values that are not null, the first seen on a tie."""
    seen: dict[str, Counter[Kind]] = {}
    for row in rows:
        for key, value in row.items():
            seen.setdefault(key, Counter())[_kind_of_value(value)] += 1
    kinds = {}
    for key, counts in seen.items():
        counts.pop(Kind.NULL, None)
        kinds[key] = counts.most_common(1)[0][0] if counts else Kind.NULL
    return kinds


def is_json_type(data_type: pa.DataType) -> bool:
    """Whether a column holds JSON text under Arrow's extension type for it."""
    return isinstance(data_type, pa.BaseExtensionType) and data_type.extension_name == "arrow.json"


def holds_json(data_type: pa.DataType) -> bool:
    """Whether a type is Arrow's JSON, or a list or struct of it at any depth. `datasets` writes messages so."""
    inner = (data_type.field(index).type for index in range(data_type.num_fields))
    return is_json_type(data_type) or any(map(holds_json, inner))


def parsed_json(value: Any, data_type: pa.DataType) -> Any:
    """A Python value of this type with its JSON texts parsed. Raises a ValueError or RecursionError for bad JSON."""
    if value is None or not holds_json(data_type):
        return value
    if is_json_type(data_type):
        return json.loads(value)
    if pat.is_struct(data_type):
        return {field.name: parsed_json(value[field.name], field.type) for field in data_type}
    if any(is_list(data_type) for is_list in LISTS):
        return [parsed_json(item, data_type.value_type) for item in value]
    return value


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """The type without what depends on the writer: dictionaries, extension types, 64-bit offsets and views."""
    if isinstance(data_type, pa.BaseExtensionType):
        return plain_type(data_type.storage_type)
    if pat.is_dictionary(data_type):
        return plain_type(data_type.value_type)
    if any(is_text(data_type) for is_text in TEXTS):
        return pa.string()
    if any(is_list(data_type) for is_list in LISTS):
        return pa.list_(plain_type(data_type.value_type))
    if pat.is_struct(data_type):
        return pa.struct([pa.field(child.name, plain_type(child.type)) for child in data_type])
    return data_type


def empty_table(schema: pa.Schema) -> pa.Table:
    """A table without rows; that of pyarrow fails for some types."""
    return pa.Table.from_arrays([pa.nulls(0, column.type) for column in schema], schema=schema)


def common_type(types: Iterable[pa.DataType]) -> pa.DataType | None:
    """A type that holds every value of these types with its meaning: a number stays one. None if there is none."""
    found = list(dict.fromkeys(kind for kind in types if not pat.is_null(kind)))
    if len({*map(plain_type, found)}) < 2:
        return found[0] if found else pa.null()
    try:
        merged = pa.unify_schemas([pa.schema([("", plain_type(kind))]) for kind in found], promote_options="permissive")
    except pa.ArrowException:
        return None
    return merged.field(0).type


def check_id_column(name: str, columns: Columns, schema: pa.Schema | None) -> None:
    """Raise a SchemaError unless the source has a column of this name that can hold ids."""
    if name not in columns:
        raise SchemaError(
            f"source.id_column {name!r} is not there; the source has {[*columns]}. "
            "Name a column with unique ids, or leave it out to use a hash of the content."
        )
    if schema is None:
        return
    plain = plain_type(schema.field(name).type)
    if not (pat.is_string(plain) or pat.is_integer(plain) or pat.is_null(plain)):
        raise SchemaError(f"source.id_column {name!r} is {plain}; wanted text or whole numbers.")


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return array


def undecodable_rows(columns: Mapping[str, pa.Array]) -> set[int]:
    """Rows in which a column holds bytes that are not UTF-8."""
    odd = [array for array in columns.values() if not _is_valid(array)]
    return {index for array in odd for index in range(len(array)) if not _is_valid(array.slice(index, 1))}


def kept_only(array: pa.Array, kept: npt.NDArray[np.bool_]) -> pa.Array:
    """The array with nulls where a row is not kept."""
    return array if kept.all() else array.take(pa.array(np.arange(len(array)), mask=~kept))


def _kind_of_type(data_type: pa.DataType) -> Kind:
    plain = plain_type(data_type)
    if pat.is_list(plain):
        return _KIND_OF_LIST.get(_kind_of_scalar(plain.value_type), Kind.OTHER)
    return _kind_of_scalar(plain)


def _kind_of_scalar(plain: pa.DataType) -> Kind:
    if pat.is_string(plain):
        return Kind.TEXT
    if pat.is_null(plain):
        return Kind.NULL
    if pat.is_boolean(plain):
        return Kind.FLAG
    if pat.is_integer(plain) or pat.is_floating(plain) or pat.is_decimal(plain):
        return Kind.NUMBER
    if pat.is_struct(plain) and _is_message({child.name for child in plain}):
        return Kind.TURNS
    return Kind.OTHER


def _kind_of_value(value: Any) -> Kind:
    for kind, types in _PYTHON_TYPES.items():
        if isinstance(value, types):
            return kind
    if isinstance(value, Mapping) and _is_message(value.keys()):
        return Kind.TURNS
    if isinstance(value, list):
        first = next((item for item in value if item is not None), None)
        return Kind.OTHER if isinstance(first, list) else _KIND_OF_LIST.get(_kind_of_value(first), Kind.OTHER)
    return Kind.OTHER


def _is_message(names: AbstractSet[str]) -> bool:
    """Whether an object of these fields is a message; one of tool calls may lack its content."""
    return "role" in names and not names.isdisjoint(("content", TOOL_CALLS))


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
