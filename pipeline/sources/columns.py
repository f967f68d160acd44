"""The columns of a source: what kind of thing each one holds, and which are passed through unchanged.

Formats ask for kinds, not for Arrow types. So one rule serves Parquet, Arrow and JSON Lines.

Passed-through columns of Parquet and Arrow keep their types, except that dictionaries and extension types become plain.
Those of JSON Lines get the commonest type of the sampled rows: text, whole number, number or flag; lists and objects
are written as JSON text. A later value of another type drops its row.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pat

from pipeline.drops import DropRow, Reason
from pipeline.errors import SchemaError
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

_TEXTS: Final = (pat.is_string, pat.is_large_string, pat.is_string_view)
_LISTS: Final = (pat.is_list, pat.is_large_list, pat.is_fixed_size_list, pat.is_list_view, pat.is_large_list_view)
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

_JSON_TEXT: Final = {b"alignpot": b"json"}
"""Marks a field whose values of any kind are written as JSON text."""
_VALUES_OF: Final[dict[Any, set[type]]] = {
    pa.string(): {str},
    pa.int64(): {int},
    pa.float64(): {int, float},
    pa.bool_(): {bool},
}


def described(columns: Columns) -> str:
    """The columns with their kinds, for a message."""
    return ", ".join(f"{shown(name)} ({kind})" for name, kind in columns.items()) or "no columns"


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
    if any(is_list(data_type) for is_list in _LISTS):
        return [parsed_json(item, data_type.value_type) for item in value]
    return value


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """The type without what depends on the writer: dictionaries, extension types, 64-bit offsets and views."""
    if isinstance(data_type, pa.BaseExtensionType):
        return plain_type(data_type.storage_type)
    if pat.is_dictionary(data_type):
        return plain_type(data_type.value_type)
    if any(is_text(data_type) for is_text in _TEXTS):
        return pa.string()
    if any(is_list(data_type) for is_list in _LISTS):
        return pa.list_(plain_type(data_type.value_type))
    if pat.is_struct(data_type):
        return pa.struct([pa.field(child.name, plain_type(child.type)) for child in data_type])
    return data_type


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


def passthrough_fields(
    names: Sequence[str], schema: pa.Schema | None, columns: Columns, sample: Sequence[Row]
) -> tuple[pa.Field, ...]:
    """Fields of the columns to pass through.

    Raises:
        SchemaError: the source lacks some of them.
    """
    missing = [name for name in names if name not in columns]
    if missing:
        raise SchemaError(
            f"source.passthrough names {missing}; the source has {list(columns)}. Name columns that are there."
        )
    if schema is None:
        return tuple(_field_of_values(name, [row.get(name) for row in sample]) for name in dict.fromkeys(names))
    return tuple(pa.field(name, _writable_type(schema.field(name).type)) for name in dict.fromkeys(names))


def fitted(row: Row, field: pa.Field) -> Any:
    """The value of a JSON row's column as one that `field` can hold, or DropRow."""
    value = row.get(field.name)
    if value is None:
        return None
    if field.metadata == _JSON_TEXT:
        value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if type(value) not in _VALUES_OF[field.type]:
        raise DropRow(Reason.PASSTHROUGH_TYPE)
    try:
        pa.scalar(value, field.type).validate(full=True)
    except UnicodeEncodeError:
        raise DropRow(Reason.UNDECODABLE_TEXT) from None
    except (pa.ArrowException, OverflowError):
        raise DropRow(Reason.PASSTHROUGH_TYPE) from None
    return value


def fitted_column(column: pa.ChunkedArray, field: pa.Field) -> pa.Array:
    """A column of Parquet or Arrow in one piece and of its field's type."""
    array = one_array(column)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array if array.type == field.type else array.cast(field.type)


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
    if pat.is_struct(plain) and {"role", "content"} <= {child.name for child in plain}:
        return Kind.TURNS
    return Kind.OTHER


def _kind_of_value(value: Any) -> Kind:
    for kind, types in _PYTHON_TYPES.items():
        if isinstance(value, types):
            return kind
    if isinstance(value, Mapping) and {"role", "content"} <= value.keys():
        return Kind.TURNS
    if isinstance(value, list):
        first = next((item for item in value if item is not None), None)
        return Kind.OTHER if isinstance(first, list) else _KIND_OF_LIST.get(_kind_of_value(first), Kind.OTHER)
    return Kind.OTHER


def _field_of_values(name: str, values: Sequence[Any]) -> pa.Field:
    """Field for the commonest kind of the values, so that one odd row in the sample does not decide."""
    kind_of = {str: "text", bool: "flag", int: "number", float: "number"}
    kinds = Counter(kind_of.get(type(value), "json") for value in values if value is not None)
    kind = kinds.most_common(1)[0][0] if kinds else "text"
    if kind == "json":
        return pa.field(name, pa.string(), metadata=_JSON_TEXT)
    if kind == "number":
        return pa.field(name, pa.float64() if any(isinstance(value, float) for value in values) else pa.int64())
    return pa.field(name, pa.string() if kind == "text" else pa.bool_())


def _writable_type(data_type: pa.DataType) -> pa.DataType:
    if is_json_type(data_type):
        return pa.string()
    if isinstance(data_type, pa.BaseExtensionType):
        return _writable_type(data_type.storage_type)
    if pat.is_dictionary(data_type):
        return _writable_type(data_type.value_type)
    return data_type


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
