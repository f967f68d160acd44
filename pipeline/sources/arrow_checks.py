"""Checks of Arrow data from outside, made before anything relies on it.

Arrow trusts the offsets, sizes and indices in a file. A wrong one makes it read outside of its buffers. The heads of
messages are flatbuffers. They are read here without the data that they describe.
"""

import operator
import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipeline.shown import shown
from pipeline.sources.bounds import CELL_BYTES, BadFile, check_expansion

_TAIL: Final = struct.Struct("<i6s")  # of a file: size of the footer, magic
_MAGIC: Final = b"ARROW1"
_CONTINUED: Final = b"\xff\xff\xff\xff"  # before the size of a head; the oldest writers leave it out
_DICTIONARY, _BATCH = 2, 3  # kinds of message
_EMPTY_VALUES: Final = 1 << 16  # nulls take no bytes

_AS_BYTES: Final = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
_LISTS: Final[tuple[tuple[Any, Any], ...]] = (
    (pat.is_list, lambda field, _: pa.list_(field)),
    (pat.is_large_list, lambda field, _: pa.large_list(field)),
    (pat.is_list_view, lambda field, _: pa.list_view(field)),
    (pat.is_large_list_view, lambda field, _: pa.large_list_view(field)),
    (pat.is_fixed_size_list, lambda field, like: pa.list_(field, like.list_size)),
)
_BYTES: Final = (pat.is_binary, pat.is_large_binary, pat.is_fixed_size_binary)


class _Table:
    """A table of a flatbuffer, found by a pointer to it; fields go by their number in Arrow's format."""

    def __init__(self, data: bytes, pointer: int) -> None:
        self._data = data
        self._at = pointer + self._number("<I", pointer)
        self._vtable = self._at - self._number("<i", self._at)

    def number(self, field: int, form: str) -> int:
        """A scalar, 0 where it is left out."""
        place = self._place(field)
        return self._number(form, place) if place else 0

    def table(self, field: int) -> "_Table | None":
        """A table, None where it is left out."""
        place = self._place(field)
        return _Table(self._data, place) if place else None

    def longs(self, field: int, width: int) -> tuple[int, ...]:
        """A vector of structs of `width` long numbers each, all in a row."""
        place = self._place(field)
        if not place:
            return ()
        start = place + self._number("<I", place)
        return struct.unpack_from(f"<{width * self._number('<I', start)}q", self._data, start + 4)

    def _place(self, field: int) -> int:
        slot = 4 + 2 * field
        offset = self._number("<H", self._vtable + slot) if slot < self._number("<H", self._vtable) else 0
        return self._at + offset if offset else 0

    def _number(self, form: str, at: int) -> int:
        return int(struct.unpack_from(form, self._data, at)[0])


def rows_of_message(message: pa.Message) -> int:
    """Rows that a message of a stream adds.

    Raises:
        BadFile: it claims more than it holds, or is a decompression bomb.
    """
    body = message.body
    return _num_rows(_Table(message.metadata.to_pybytes(), 0), body.size, lambda at: body.slice(at, 8).to_pybytes())


def rows_of_file(file: Any) -> list[int]:
    """Rows of each record batch of an Arrow file.

    Raises:
        BadFile: its footer points outside of the file or twice to the same bytes, or see `rows_of_message`.
    """
    file.seek(0, 2)
    end = max(file.tell() - _TAIL.size, 0)
    footer_bytes, magic = _TAIL.unpack(_read(file, end, _TAIL.size))
    end -= footer_bytes
    if magic != _MAGIC or end < 0 or footer_bytes < 0:
        raise BadFile("is cut short or damaged (no footer)")
    footer = _Table(_read(file, end, footer_bytes), 0)
    dictionaries, batches = _blocks(footer.longs(2, 3)), _blocks(footer.longs(3, 3))
    read_to = 0
    for offset, head_bytes, body_bytes in sorted(dictionaries + batches):
        if offset < read_to or head_bytes < 0 or body_bytes < 0:
            raise BadFile("is damaged (its footer points twice to the same bytes)")
        read_to = offset + head_bytes + body_bytes
    if read_to > end:
        raise BadFile("is damaged (its footer points beyond the data)")
    for block in dictionaries:
        _rows_of_block(file, *block)
    return [_rows_of_block(file, *block) for block in batches]


def sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, if its offsets, sizes and indices hold. Its text may still not be UTF-8; that drops only the row.

    Raises:
        pa.ArrowInvalid: they do not.
        BadFile: see `within_bounds`.
    """
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        batch.validate()
        for column in batch.columns:
            column.view(_as_bytes(column.type)).validate(full=True)
    return within_bounds(batch)


def within_bounds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, or BadFile if a text in it is longer than CELL_BYTES."""
    if batch.get_total_buffer_size() > CELL_BYTES:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            longest = _longest(column.view(_as_bytes(column.type)))
            if longest > CELL_BYTES:
                raise BadFile(f"has a text of {longest} bytes in column {shown(name)}; at most {CELL_BYTES} are read")
    return batch


def _blocks(longs: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Place, size of the head (half of a long number) and size of the body of each message."""
    return list(zip(longs[::3], (size & 0xFFFFFFFF for size in longs[1::3]), longs[2::3], strict=True))


def _rows_of_block(file: Any, offset: int, head_bytes: int, body_bytes: int) -> int:
    head, body = _read(file, offset, head_bytes), offset + head_bytes
    message = _Table(head[8 if head.startswith(_CONTINUED) else 4 :], 0)
    return _num_rows(message, body_bytes, lambda at: _read(file, body + at, 8))


def _num_rows(message: _Table, body_bytes: int, eight_bytes: Callable[[int], bytes]) -> int:
    """Rows of a message that is a record batch, 0 of another; `eight_bytes` reads at a place in its body."""
    kind, batch = message.number(1, "<B"), message.table(2)
    if kind == _DICTIONARY and batch is not None:
        batch = batch.table(1)
    if kind not in {_DICTIONARY, _BATCH} or batch is None:
        return 0
    num_rows, lengths, buffers = batch.number(0, "<q"), batch.longs(1, 2)[::2], batch.longs(2, 2)
    offsets, sizes = buffers[::2], buffers[1::2]
    if buffers and (min(buffers) < 0 or max(map(operator.add, offsets, sizes)) > body_bytes):
        raise BadFile("is damaged (a buffer lies outside of its batch)")
    total = sum(sizes)
    if batch.table(3) is not None:
        for offset, size in zip(offsets, sizes, strict=True):
            # A packed buffer starts with its size, or with -1 where it was left as it is.
            expanded = struct.unpack("<q", eight_bytes(offset))[0] if size else 0
            check_expansion(expanded, size)
            total += max(expanded - size, 0)
    check_expansion(total, body_bytes)
    longest = max(num_rows, *lengths, 0)
    if longest > max(8 * total, _EMPTY_VALUES) or min(num_rows, *lengths, 0) < 0:
        raise BadFile(f"is damaged (a batch claims {longest:,} values in {total:,} bytes)")
    return num_rows if kind == _BATCH else 0


def _read(file: Any, at: int, size: int) -> bytes:
    file.seek(at)
    data: bytes = file.read(size)
    return data


def _as_bytes(data_type: pa.DataType) -> pa.DataType:
    """The type of the same buffers, with bytes in the place of text."""
    if isinstance(data_type, pa.BaseExtensionType):
        return _as_bytes(data_type.storage_type)
    if pat.is_dictionary(data_type):
        return pa.dictionary(data_type.index_type, _as_bytes(data_type.value_type), data_type.ordered)
    if pat.is_map(data_type):
        return pa.map_(_as_bytes(data_type.key_type), _as_bytes(data_type.item_type))
    if pat.is_struct(data_type):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in data_type])
    for is_list, list_of in _LISTS:
        if is_list(data_type):
            return list_of(data_type.value_field.with_type(_as_bytes(data_type.value_type)), data_type)
    return _AS_BYTES.get(data_type, data_type)


def _longest(array: pa.Array) -> int:
    """Bytes of the longest value in an array whose type is from `_as_bytes`."""
    if pat.is_dictionary(array.type):
        return _longest(array.dictionary)
    if pat.is_struct(array.type):
        return max((_longest(array.field(index)) for index in range(array.type.num_fields)), default=0)
    if pat.is_nested(array.type) and hasattr(array, "values"):
        return _longest(array.values)
    if pat.is_binary_view(array.type):
        heads = np.frombuffer(array.buffers()[1], np.int32)[4 * array.offset :: 4]  # four numbers, the first the length
        return int(heads[: len(array)].max(initial=0))
    if any(is_bytes(array.type) for is_bytes in _BYTES):
        return pc.max(pc.binary_length(array)).as_py() or 0
    return 0
