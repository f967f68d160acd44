"""The one step between what a file holds and what the formats know: names of columns, forms of messages, roles.

Columns get the names that the formats read, by `source.columns` or by a spelling that is listed here. Messages become
objects of `role` and `content`, whether they were written with the keys `from` and `value`, as one object, or as an
object of two lists, which is how older `datasets` stores a list of objects. Roles become those of chat templates, by
`source.roles` or by a spelling that is listed here. Numbers that were written as text become numbers.

`of_table` does this for Arrow, by whole columns, and `of_row` for one row of JSON. Both give the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipeline.sources.columns import LISTS, TEXTS, Row, one_array
from pipeline.sources.turns import ROLES

ROLE_KEYS: Final = ("role", "from", "speaker")
CONTENT_KEYS: Final = ("content", "value", "text")
_USUAL: Final = ("role", "content")
_SPELLED: Final = {
    **dict.fromkeys(("human", "prompter", "instruction"), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "chatgpt", "bard", "bing", "ai", "chatbot"), "assistant"),
    "observation": "tool",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMap:
    """Turns rows as they were read into rows as the formats know them; can be pickled."""

    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By name that the formats know: the column that holds the value, and the fields or list indices below it."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Roles of the source that stand for others, besides the spellings listed here."""
    numbers: frozenset[str] = frozenset()
    """Names whose values are numbers written as text."""

    def reads(self, names: Sequence[str]) -> list[str]:
        """Columns of the source in which the values of these names stand."""
        return list(dict.fromkeys(self.paths.get(name, (name,))[0] for name in names))

    def names(self, columns: Sequence[str]) -> list[str]:
        """Names of the mapped columns of a source. A column that was renamed has its old name no more."""
        renamed = {path[0] for path in self.paths.values() if len(path) == 1}
        return list(dict.fromkeys([*self.paths, *(name for name in columns if name not in renamed)]))

    def of_row(self, row: Row) -> Row:
        """One row of JSON, mapped."""
        if self.paths:
            row = {name: self.value(row, name) for name in self.names([*row])}
        return {name: self._value(name, value) for name, value in row.items()}

    def value(self, row: Row, name: str) -> Any:
        """What stands under a mapped name in a row as it was read."""
        path = self.paths.get(name, (name,))
        value: Any = row
        for key in path:
            if isinstance(value, list):
                value = value[int(key)] if key.isdecimal() and int(key) < len(value) else None
            else:
                value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def of_table(self, table: pa.Table, names: Sequence[str]) -> pa.Table:
        """A table as it was read, as these mapped columns. A column that the table lacks is null."""
        mapped = {}
        for name in names:
            is_known = name in table.column_names and self._is_known(name, table.column(name))
            mapped[name] = table.column(name) if is_known else self._column(name, self.column(table, name))
        return pa.table(mapped)

    def column(self, table: pa.Table, name: str) -> pa.Array:
        """What stands under a mapped name in a table as it was read."""
        head, *fields = self.paths.get(name, (name,))
        if head not in table.column_names:
            return pa.nulls(table.num_rows)
        array = one_array(table.column(head))
        for key in fields:
            if is_list(array.type) and key.isdecimal():
                array = _item(array, int(key))
            elif pat.is_struct(array.type) and array.type.get_field_index(key) >= 0:
                array = pc.struct_field(array, key)
            else:
                return pa.nulls(table.num_rows)
        return array

    def _value(self, name: str, value: Any) -> Any:
        if name in self.numbers:
            return [_number(item) for item in value] if isinstance(value, list) else _number(value)
        if isinstance(value, Mapping):
            keys = _message_keys(value)
            if keys is None:
                return value
            if not isinstance(value[keys[0]], list):
                return [self._message(value)]
            value = _messages_of_lists(value)
        if not isinstance(value, list) or not any(isinstance(item, Mapping) and _message_keys(item) for item in value):
            return value
        return [self._message(item) for item in value]

    def _message(self, message: Any) -> Any:
        """A message with the usual keys and role."""
        keys = _message_keys(message) if isinstance(message, Mapping) else None
        if keys is None:
            return message
        role = message[keys[0]]
        known = self._role(role) if isinstance(role, str) else role
        if keys == _USUAL and known == role:
            return message
        rest = {key: value for key, value in message.items() if key not in keys}
        return {"role": known, "content": message[keys[1]], **rest}

    def _role(self, role: str) -> str:
        if role in self.roles:
            return self.roles[role]
        return role if role in ROLES else _role_of_spelling(role)

    def _is_known(self, name: str, column: pa.ChunkedArray) -> bool:
        """Whether a column is as the formats know it already, so that it need not be copied."""
        if name in self.paths or name in self.numbers or pat.is_struct(column.type):
            return False
        if not is_list(column.type) or not pat.is_struct(column.type.value_type):
            return True
        keys = _keys_of_type(column.type.value_type)
        if keys is None:
            return True
        return all(self._messages(items, keys) is items for items in (chunk.flatten() for chunk in column.chunks))

    def _role_of_bytes(self, text: bytes) -> bytes:
        try:
            return self._role(text.decode()).encode()
        except UnicodeDecodeError:
            return text

    def _column(self, name: str, array: pa.Array) -> pa.Array:
        if name in self.numbers:
            return _numbers(array)
        if pat.is_struct(array.type):
            keys = _keys_of_type(array.type)
            if keys is None:
                return array
            array = _lists_joined(array, keys) if is_list(array.type.field(keys[0]).type) else _as_lists(array)
        if not is_list(array.type) or not pat.is_struct(array.type.value_type):
            return array
        keys = _keys_of_type(array.type.value_type)
        if keys is None:
            return array
        messages = array.flatten()
        renamed = self._messages(messages, keys)
        return array if renamed is messages else _listed(_offsets(array), renamed, array)

    def _messages(self, messages: pa.StructArray, keys: tuple[str, str]) -> pa.StructArray:
        """A flat array of messages with the usual keys and roles; the same one if it has them already."""
        role = plain = pc.struct_field(messages, keys[0])
        kind = role.type.value_type if pat.is_dictionary(role.type) else role.type
        if any(is_text(kind) for is_text in TEXTS):
            encoded = role.dictionary_encode()
            written = encoded.dictionary.cast(pa.binary()).to_pylist()  # not all of it need be UTF-8
            known = [text if text is None else self._role_of_bytes(text) for text in written]
            if known != written:
                plain = pa.array(known, pa.binary()).view(pa.string()).take(encoded.indices)
        if keys == _USUAL and plain is role:
            return messages
        columns = {"role": plain, "content": pc.struct_field(messages, keys[1])}
        for column in messages.type:
            if column.name not in {*keys, "role", "content"}:
                columns[column.name] = pc.struct_field(messages, column.name)
        return pa.StructArray.from_arrays([*columns.values()], names=[*columns], mask=messages.is_null())


def is_list(data_type: pa.DataType) -> bool:
    """Whether a type is one of Arrow's lists."""
    return any(is_one(data_type) for is_one in LISTS)


def _message_keys(names: Any) -> tuple[str, str] | None:
    """The keys of role and content among the names of an object; None if it is no message."""
    if "role" in names and "content" in names:
        return _USUAL
    role = next((key for key in ROLE_KEYS if key in names), None)
    content = next((key for key in CONTENT_KEYS if key in names), None)
    return (role, content) if role and content else None


def _keys_of_type(kind: pa.StructType) -> tuple[str, str] | None:
    """The same for a type. One that has two fields of one name is that of no message."""
    return _message_keys(kind.names) if len({*kind.names}) == kind.num_fields else None


def _role_of_spelling(role: str) -> str:
    plain = role.strip().lower()
    return plain if plain in ROLES else _SPELLED.get(plain, role)


def _messages_of_lists(value: Mapping[str, Any]) -> Any:
    """A list of objects out of an object of lists; None if these differ in length."""
    lists = {key: items for key, items in value.items() if items is not None}
    if not all(isinstance(items, list) for items in lists.values()) or len({*map(len, lists.values())}) != 1:
        return None
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def _number(value: Any) -> Any:
    """The number that a text says, None for a text that says none; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return None


def says_number(text: str) -> bool:
    """Whether a text is that of a number."""
    return _number(text) is not None


def _numbers(array: pa.Array) -> pa.Array:
    if is_list(array.type):
        return _listed(_offsets(array), _numbers(array.flatten()), array)
    if not any(is_text(array.type) for is_text in TEXTS):
        return array
    written = array.cast(pa.binary()).to_pylist()  # not all of it need be UTF-8
    return pa.array(
        [text if text is None else _number(text.decode(errors="replace")) for text in written], pa.float64()
    )


def _item(lists: pa.Array, index: int) -> pa.Array:
    """The item of this index, from 0 on, in each list; null where there is none."""
    starts = _offsets(lists).to_numpy()
    return lists.flatten().take(pa.array(starts[:-1] + index, mask=np.diff(starts) <= index))


def _offsets(lists: pa.Array) -> pa.Array:
    """Where the items of each list begin in the flat array of all items."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _listed(offsets: pa.Array, items: pa.Array, like: pa.Array) -> pa.Array:
    """A list array of these items, null where `like` is."""
    return pa.ListArray.from_arrays(offsets, items, mask=like.is_null() if like.null_count else None)


def _as_lists(message: pa.StructArray) -> pa.Array:
    """Single messages as lists of one."""
    is_there = message.is_valid().to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(is_there)]), pa.int32())
    return _listed(offsets, message.filter(message.is_valid()), message)


def _lists_joined(lists: pa.StructArray, keys: tuple[str, str]) -> pa.Array:
    """A list of messages out of an object of lists. A row whose lists differ in length is null."""
    columns = {key: pc.struct_field(lists, key) for key in lists.type.names}
    columns = {key: column for key, column in columns.items() if is_list(column.type)}
    lengths = {key: pc.list_value_length(column) for key, column in columns.items()}
    alike = lists.is_valid()
    for length in lengths.values():
        alike = pc.and_(alike, pc.fill_null(pc.equal(length, lengths[keys[0]]), fill_value=False))
    good = {key: pc.if_else(alike, column, pa.scalar(None, column.type)) for key, column in columns.items()}
    items = pa.StructArray.from_arrays([column.flatten() for column in good.values()], names=[*good])
    return _listed(_offsets(good[keys[0]]), items, good[keys[0]])
