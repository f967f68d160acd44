"""Lines of JSON out of a file, in time and memory that do not grow with what the file claims to be."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import pyarrow as pa

from pipeline.sources.bounds import CELL_BYTES, BadFile, check_expansion

_CHUNK_BYTES: Final = 1 << 20
_BLANK_BYTES: Final = 1 << 11  # of blank lines that are skipped in one step
_BEFORE_JSON: Final = b"\xef\xbb\xbf \t\r\n\v\f"


def unpacked(file: Any, codec: str | None) -> Callable[[int], bytes]:
    """Reads a file, decompressed; a decompression bomb raises BadFile while it is read."""
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
    """Reads the same, but raises BadFile where the first byte that is not blank opens a JSON array."""
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
    """Non-blank lines and the byte offsets at which they start, where reading starts at `offset` with row `row`.

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
