"""What kind of thing each source column holds, told from an Arrow schema or from rows of JSON.

Formats ask for kinds, not for Arrow types. So one rule serves Parquet, Arrow and JSON Lines.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa
import pyarrow.types as pat


class Kind(StrEnum):
    """Kind of a column. `turns` covers a list of messages and a single message object."""

    TEXT = "text"
    TURNS = "turns"
    TEXTS = "texts"
    NUMBER = "number"
    NUMBERS = "numbers"
    FLAG = "flag"
    NULL = "null"
    OTHER = "other"


Columns = Mapping[str, Kind]
TURN_LIKE: Final = frozenset({Kind.TURNS, Kind.TEXT})


def kinds_of_schema(schema: pa.Schema) -> dict[str, Kind]:
    """Kind of every column of an Arrow schema."""
    return {field.name: kind_of_type(field.type) for field in schema}


def kinds_of_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, Kind]:
    """Kind of every key seen in rows of JSON: the commonest kind of its non-null values, the first seen on a tie."""
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
    """Whether a column holds values as JSON text under Arrow's JSON extension type."""
    return isinstance(data_type, pa.BaseExtensionType) and data_type.extension_name == "arrow.json"


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """The type without what depends on the writer: dictionaries, extension types, 64-bit offsets and views."""
    if isinstance(data_type, pa.BaseExtensionType):
        return plain_type(data_type.storage_type)
    if pat.is_dictionary(data_type):
        return plain_type(data_type.value_type)
    if _is_text(data_type):
        return pa.string()
    if _is_list(data_type):
        return pa.list_(plain_type(data_type.value_type))
    if pat.is_struct(data_type):
        return pa.struct([pa.field(child.name, plain_type(child.type)) for child in data_type])
    return data_type


def kind_of_type(data_type: pa.DataType) -> Kind:
    """Kind of an Arrow type; a JSON extension column is `other` until its rows are looked at."""
    if is_json_type(data_type):
        return Kind.OTHER
    plain = plain_type(data_type)
    if pat.is_list(plain):
        return _kind_of_list(_kind_of_scalar(plain.value_type))
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


def _kind_of_list(element: Kind) -> Kind:
    of = {Kind.TEXT: Kind.TEXTS, Kind.NUMBER: Kind.NUMBERS, Kind.TURNS: Kind.TURNS, Kind.NULL: Kind.NULL}
    return of.get(element, Kind.OTHER)


def _kind_of_value(value: Any) -> Kind:
    if isinstance(value, list):
        kinds = [kind for kind in map(_kind_of_json_scalar, value) if kind is not Kind.NULL]
        return _kind_of_list(kinds[0] if kinds else Kind.NULL)
    return _kind_of_json_scalar(value)


def _kind_of_json_scalar(value: Any) -> Kind:
    if value is None:
        return Kind.NULL
    if isinstance(value, bool):
        return Kind.FLAG
    if isinstance(value, str):
        return Kind.TEXT
    if isinstance(value, (int, float)):
        return Kind.NUMBER
    if isinstance(value, Mapping) and {"role", "content"} <= value.keys():
        return Kind.TURNS
    return Kind.OTHER


def _is_text(data_type: pa.DataType) -> bool:
    return bool(pat.is_string(data_type) or pat.is_large_string(data_type) or pat.is_string_view(data_type))


def _is_list(data_type: pa.DataType) -> bool:
    tests = (pat.is_list, pat.is_large_list, pat.is_fixed_size_list, pat.is_list_view, pat.is_large_list_view)
    return any(test(data_type) for test in tests)
