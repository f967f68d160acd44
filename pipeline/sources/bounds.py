"""Bounds on foreign files: how much of one is held in memory at once, and how much of what it claims is believed.

JSON Lines are read here within these bounds, in time that does not grow with what the file claims to be. `pages` and
`arrow_checks` do the same for Parquet and Arrow.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import pyarrow as pa

CELL_BYTES: Final = 128 << 20
"""Most bytes of a text, of a line of JSON, or of a page that expands by far. That is some 30 million tokens, more than
any model reads, and small enough that many of them fit into memory at once."""

BOMB_BYTES: Final = 2 * CELL_BYTES
_BOMB_RATIO: Final = 200  # text is packed to a fifth, seldom to a hundredth
_VALUES: Final = 1 << 27
_VALUES_A_BYTE: Final = 100
_CHUNK_BYTES: Final = 1 << 20
_BLANK_BYTES: Final = 1 << 11  # of blank lines that are skipped in one step
_BEFORE_JSON: Final = b"\xef\xbb\xbf \t\r\n\v\f"


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


def not_an_array(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """As `read`, but raises BadFile if the first byte that is not blank opens a JSON array."""
    is_open = False

    def checked(size: int) -> bytes:
        nonlocal is_open
        chunk = read(size)
        if not is_open:
            head = chunk.lstrip(_BEFORE_JSON)
            if head.startswith(b"["):
                raise BadFile("holds a JSON array; write one JSON object a line")
            is_open = bool(head)
        return chunk

    return checked


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
