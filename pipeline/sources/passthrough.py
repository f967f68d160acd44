"""Columns of the source that are carried along unchanged.

Those of Parquet and Arrow keep their types, except that dictionaries, views and extension types become plain, and maps
become lists of keys and values: other types are not known to all who read our files.

Those of JSON and CSV get the commonest type of the sampled rows: text, whole number, number or flag; lists and objects
are written as JSON text. A later value of another type drops its row.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.types as pat

from pipeline.drops import DropRow, Reason
from pipeline.errors import SchemaError, SourceError
from pipeline.shown import shown
from pipeline.sources.columns import LISTS, Row

_JSON_TEXT: Final = {b"alignpot": b"json"}
"""Marks a field whose values of any kind are written as JSON text."""
_VALUES_OF: Final[dict[Any, set[type]]] = {
    pa.string(): {str},
    pa.int64(): {int},
    pa.float64(): {int, float},
    pa.bool_(): {bool},
}
_LIST_VIEWS: Final = (pat.is_list_view, pat.is_large_list_view)
_WITHOUT_VIEW: Final = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
_UNWRITABLE: Final = (pat.is_union, pat.is_interval, pat.is_run_end_encoded)


def passthrough_fields(
    names: Sequence[str], schema: pa.Schema | None, columns: Sequence[str], sample: Sequence[Row]
) -> tuple[pa.Field, ...]:
    """Fields of the columns to pass through.

    Raises:
        SchemaError: the source lacks some of them, or they are of a type that cannot be written.
    """
    missing = [name for name in names if name not in columns]
    if missing:
        raise SchemaError(f"source.passthrough names {missing}; the source has {columns}. Name columns that are there.")
    if schema is None:
        return tuple(_field_of_values(name, [row.get(name) for row in sample]) for name in dict.fromkeys(names))
    odd = [f"{shown(name)} ({schema.field(name).type})" for name in names if _is_odd(schema.field(name).type)]
    if odd:
        raise SchemaError(
            f"source.passthrough names {', '.join(odd)}, of a type that cannot be written. "
            "Leave them out, or change their type in the source."
        )
    return tuple(pa.field(name, _writable_type(schema.field(name).type)) for name in dict.fromkeys(names))


def fitted(value: Any, field: pa.Field) -> Any:
    """A value of JSON as one that `field` can hold, or DropRow."""
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


def fitted_column(array: pa.Array, field: pa.Field) -> pa.Array:
    """A column of Parquet or Arrow as one of its field's type."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if array.type == field.type:
        return array
    try:
        # pyarrow casts views of lists to lists without their values
        return pa.array(array.to_pylist(), field.type) if _holds_list_view(array.type) else array.cast(field.type)
    except pa.ArrowInvalid:
        raise SourceError(
            f"source.passthrough: a value of {shown(field.name)} does not fit {field.type}, the type of other files. "
            "Leave the column out, or give it one type."
        ) from None


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
    """The type as which values are written."""
    while isinstance(data_type, pa.BaseExtensionType) or pat.is_dictionary(data_type):
        data_type = data_type.value_type if pat.is_dictionary(data_type) else data_type.storage_type
    if pat.is_map(data_type):
        data_type = pa.list_(pa.struct([("key", data_type.key_type), ("value", data_type.item_type)]))
    if pat.is_struct(data_type):
        return pa.struct([child.with_type(_writable_type(child.type)) for child in data_type])
    if any(is_list(data_type) for is_list in LISTS):
        item = data_type.value_field.with_type(_writable_type(data_type.value_type))
        is_view = any(is_view(data_type) for is_view in _LIST_VIEWS)
        return pa.list_(item) if is_view or item.type != data_type.value_type else data_type
    return _WITHOUT_VIEW.get(data_type, data_type)


def _is_odd(data_type: pa.DataType) -> bool:
    """Whether there is no way to write values of this type."""
    inner = [data_type.field(index).type for index in range(data_type.num_fields)]
    return any(is_odd(data_type) for is_odd in _UNWRITABLE) or any(map(_is_odd, inner))


def _holds_list_view(data_type: pa.DataType) -> bool:
    inner = [data_type.field(index).type for index in range(data_type.num_fields)]
    return any(is_view(data_type) for is_view in _LIST_VIEWS) or any(map(_holds_list_view, inner))
