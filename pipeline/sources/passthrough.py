"""Source columns that are passed through unchanged: their types, and their values in rows that are kept.

Columns of Parquet and Arrow keep their types, except that dictionaries and extension types become plain.
Columns of JSON Lines get the commonest type of the sampled rows: text, whole number, number or flag; lists and objects
travel as JSON text. A later value of another type drops its row.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.drops import DropRow, Reason
from pipeline.errors import SchemaError
from pipeline.sources.columns import is_json_type
from pipeline.sources.rows import Row

_JSON_TEXT: Final = {b"alignpot": b"json"}
"""Marks a field whose values of any kind are written as JSON text."""
_VALUES_OF: Final[dict[Any, set[type]]] = {
    pa.string(): {str},
    pa.int64(): {int},
    pa.float64(): {int, float},
    pa.bool_(): {bool},
}

_KIND_OF: Final = {str: "text", bool: "flag", int: "number", float: "number"}


def passthrough_fields(
    names: Sequence[str], schema: pa.Schema | None, columns: Sequence[str], sample: Sequence[Row]
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


def plain_columns(table: pa.Table, fields: Sequence[pa.Field]) -> dict[str, pa.Array]:
    """The columns of these fields, each in one piece and of its field's type."""
    return {field.name: _plain(one_array(table.column(field.name)), field.type) for field in fields}


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return array


def undecodable_rows(columns: Mapping[str, pa.Array]) -> set[int]:
    """Rows in which a column holds bytes that are no UTF-8."""
    rows: set[int] = set()
    for array in columns.values():
        if _is_valid(array):
            continue
        rows |= {index for index in range(len(array)) if not _is_valid(array.slice(index, 1))}
    return rows


def kept_only(array: pa.Array, kept: npt.NDArray[np.bool_]) -> pa.Array:
    """The array with nulls where a row is not kept."""
    return array if kept.all() else array.take(pa.array(np.arange(len(array)), mask=~kept))


def _field_of_values(name: str, values: Sequence[Any]) -> pa.Field:
    """Field for the commonest kind of the values, so that one odd row in the sample does not decide."""
    kinds = Counter(_KIND_OF.get(type(value), "json") for value in values if value is not None)
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
    if pa.types.is_dictionary(data_type):
        return _writable_type(data_type.value_type)
    return data_type


def _plain(array: pa.Array, data_type: pa.DataType) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array if array.type == data_type else array.cast(data_type)


def _is_valid(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
