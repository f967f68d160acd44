"""Bounds on foreign files: how much of one is held in memory at once, and how much of what it claims is believed.

JSON Lines are read here in time that does not grow with what the file claims to be. For other text see `records`, for
Arrow `arrow_checks`.

A Parquet footer says rows and bytes as mere numbers. Equal values may take next to no bytes, so an unlikely claim is
compared with the heads of the pages, without their values. Footer and heads are decoded here: pyarrow ends the whole
process on some damaged descriptions of a column.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

CELL_BYTES: Final = 128 << 20
"""Most bytes of a text, of a line of JSON, or of a page that expands by far. That is some 30 million tokens, more than
any model reads, and small enough that many of them fit into memory at once."""

BOMB_BYTES: Final = 2 * CELL_BYTES
_BOMB_RATIO: Final = 200  # text is packed to a fifth, seldom to a hundredth
_VALUES: Final = 1 << 27
_VALUES_A_BYTE: Final = 100
_CHUNK_BYTES: Final = 1 << 20
_BLANK_BYTES: Final = 1 << 11  # of blank lines that are skipped in one step

_TAIL_BYTES: Final = 8  # after the footer
_HEAD_BYTES: Final = 1 << 20  # of one page, at most
_WINDOW_BYTES: Final = 4 << 20
# Of fields in Parquet's Thrift definition.
_GROUPS: Final = 4
_COLUMNS: Final = 1
_CHUNK: Final = 3
_EXPANDED_SIZE: Final = 2
_PACKED_SIZE: Final = 3
_DATA_PAGES: Final = (5, 8)
_PAGE_VALUES: Final = 1


class BadFile(Exception):  # noqa: N818 - becomes a SourceError that names the file
    """A data file that cannot be read."""


def is_bomb(expanded: int, packed: int) -> bool:
    """Whether `packed` bytes become so many that the file was made to fill memory."""
    return expanded > max(BOMB_BYTES, _BOMB_RATIO * packed)


def check_expansion(expanded: int, packed: int) -> None:
    """Raise BadFile for a decompression bomb."""
    if is_bomb(expanded, packed):
        raise BadFile(f"is a decompression bomb ({packed:,} bytes become {expanded:,} or more)")


def check_count(values: int, size: int) -> None:
    """Raise BadFile for more rows or values than a file of `size` bytes can sensibly hold, or fewer than none."""
    if not 0 <= values <= max(_VALUES, _VALUES_A_BYTE * size):
        raise BadFile(f"claims {values:,} rows or values in {size:,} bytes")


def unpacked(file: Any, codec: str | None) -> Callable[[int], bytes]:
    """A function that reads the file decompressed. A decompression bomb raises BadFile while it is read."""
    if codec is None:
        return file.read  # type: ignore[no-any-return]
    stream = pa.CompressedInputStream(file, codec)
    num_read = 0

    def read(size: int) -> bytes:
        nonlocal num_read
        chunk: bytes = stream.read(size)
        num_read += len(chunk)
        check_expansion(num_read, file.tell())
        return chunk

    return read


def lines(read: Callable[[int], bytes], offset: int = 0, row: int = 0) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines, each with the byte offset at which it starts. Reading starts at `offset`, with row `row`.

    Raises:
        BadFile: a line is longer than CELL_BYTES.
    """
    rest: list[bytes] = []  # of the line whose end is not read yet
    size = 0
    while chunk := read(_CHUNK_BYTES):
        end = chunk.find(b"\n")
        size += len(chunk) if end < 0 else end
        if size > CELL_BYTES:
            raise BadFile(f"has a line of more than {CELL_BYTES} bytes in row {row}; write one JSON object a line")
        rest.append(chunk)
        if end < 0:
            continue
        text, start = b"".join(rest), 0
        while (end := text.find(b"\n", start)) >= 0:
            line = text[start:end]
            if line.strip():
                yield offset + start, line
                start, row = end + 1, row + 1
            else:
                piece = text[start : start + _BLANK_BYTES]
                blank = len(piece) - len(piece.lstrip())
                start = max(end, text.rfind(b"\n", start, start + blank)) + 1
        offset += start
        rest, size = [text[start:]], len(text) - start
    line = b"".join(rest)
    if line.strip():
        yield offset, line


class _Chunk(NamedTuple):
    """A column of one row group: sizes and place in bytes."""

    packed: int
    start: int
    expanded: int
    num_values: int

    @classmethod
    def of_fields(cls, fields: Mapping[int, int]) -> "_Chunk":
        """From the numbered fields of a column's description."""
        start = min(fields[9], fields.get(11) or fields[9])
        return cls(num_values=fields[5], expanded=fields[6], packed=fields[7], start=start)


def rows_of_groups(file: Any, metadata: pq.FileMetaData) -> list[int]:
    """Rows of each row group of a Parquet file.

    Raises:
        BadFile: the footer contradicts itself or the pages, points outside of the file, or is of a decompression bomb.
    """
    file.seek(0, 2)
    size = file.tell()
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if sum(rows) != metadata.num_rows or min(rows, default=0) < 0:
        raise BadFile(f"is damaged (its footer says {metadata.num_rows:,} rows, its row groups {sum(rows):,})")
    if sum(rows) > size or any(group.total_byte_size > BOMB_BYTES for group in groups):
        try:
            _check_groups(file, rows, metadata.serialized_size, size)
        except (LookupError, TypeError, RecursionError):
            raise BadFile("is damaged (its footer or the head of a page)") from None
    return rows


def _check_groups(file: Any, rows: Sequence[int], footer_bytes: int, size: int) -> None:
    file.seek(size - _TAIL_BYTES - footer_bytes)
    groups = _Thrift(file.read(footer_bytes), 0).struct()[_GROUPS]
    total = 0
    for num_rows, group in zip(rows, groups, strict=True):
        widest = _Chunk(0, 0, 0, 0)
        for column in group[_COLUMNS]:
            chunk = _Chunk.of_fields(column[_CHUNK])
            check_count(chunk.num_values, size)
            total += chunk.packed
            if min(chunk.start, chunk.packed) < 0 or max(chunk.start + chunk.packed, total) > size:
                raise BadFile("is damaged (its footer points outside of the file)")
            if is_bomb(chunk.expanded, chunk.packed):
                _check_pages(file, chunk)
            widest = max(widest, chunk)
        # One column of so many values as it says bounds the rows that can be meant.
        if num_rows > widest.num_values:
            raise BadFile(f"claims {num_rows:,} rows in a column of {widest.num_values:,} values")
        if num_rows > widest.packed:
            _check_pages(file, widest)


def _check_pages(file: Any, chunk: _Chunk) -> None:
    pages = list(_pages(file, chunk.start, chunk.start + chunk.packed))
    largest = max((size for size, _ in pages), default=0)
    if largest > CELL_BYTES:
        raise BadFile(f"is a decompression bomb (a page becomes {largest:,} bytes)")
    num_values = sum(values for _, values in pages)
    if num_values < chunk.num_values:
        raise BadFile(f"claims {chunk.num_values:,} values in a column whose pages hold {num_values:,}")


def _pages(file: Any, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Size of each page, unpacked, in bytes, and the values in it."""
    window, base = b"", start
    while start < end:
        if start + _HEAD_BYTES > base + len(window) and base + len(window) < end:
            file.seek(start)
            window, base = file.read(min(_WINDOW_BYTES, end - start)), start
        thrift = _Thrift(window, start - base)
        head = thrift.struct()
        yield head[_EXPANDED_SIZE], sum(head[kind][_PAGE_VALUES] for kind in _DATA_PAGES if kind in head)
        start = base + thrift.at + max(head[_PACKED_SIZE], 0)


class _Thrift:
    """Reads Thrift's compact protocol; what stands in bytes is skipped."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def struct(self) -> dict[int, Any]:
        """The fields of the struct here, by number."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            fields[number] = head & 15 == 1 if head & 15 in {1, 2} else self._value(head & 15)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in {4, 5, 6}:
            return self._signed()
        if kind in {9, 10}:  # list, set
            head = self._byte()
            size = self._unsigned() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15) for _ in range(size)]
        if kind == 12:
            return self.struct()
        sizes = {1: 1, 2: 1, 3: 1, 7: 8}  # truth, byte, double
        size = self._unsigned() if kind == 8 else sizes[kind]
        self.at += size
        if self.at > len(self._data):
            raise IndexError
        return None

    def _signed(self) -> int:
        number = self._unsigned()
        return number >> 1 ^ -(number & 1)

    def _unsigned(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                break
        return number

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]
