"""One data file looked at before anything runs: its rows, its schema and where a reader can start.

Parquet is read by its footer. An Arrow stream and JSON Lines have none, so they are read once from end to end.
A file that cannot be read raises BadFile with the reason; errors of the storage itself travel on.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

CHUNK_BYTES: Final = 1 << 20
_MARK_EVERY_ROWS: Final = 64
_ARROW_FILE_MAGIC: Final = b"ARROW1"
_STREAM_END: Final = b"\xff\xff\xff\xff\0\0\0\0"


class FileKind(StrEnum):
    """Container of a data file."""

    PARQUET = "parquet"
    ARROW_FILE = "arrow_file"
    ARROW_STREAM = "arrow_stream"
    JSONL = "jsonl"
    JSONL_GZIP = "jsonl_gzip"
    JSONL_ZSTD = "jsonl_zstd"

    @property
    def is_json(self) -> bool:
        """Whether rows are lines of JSON, without a schema."""
        return self in _CODECS

    @property
    def codec(self) -> str | None:
        """Compression of the whole file, which bars seeking; None for none."""
        return _CODECS.get(self)


_CODECS: Final = {FileKind.JSONL: None, FileKind.JSONL_GZIP: "gzip", FileKind.JSONL_ZSTD: "zstd"}


class BadFile(Exception):  # noqa: N818 - gathered into one SourceError
    """A data file that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a look at a file found. `marks` are (row, position): places where reading can start, rows ascending.

    A position is a row group of Parquet, a record batch of an Arrow file, else a byte offset.
    """

    kind: FileKind
    num_rows: int
    schema: pa.Schema | None
    marks: tuple[tuple[int, int], ...]


def probe_file(fs: Any, path: str, extension_kind: FileKind) -> Probe:
    """Look at one file of the kind that its name tells.

    Raises:
        BadFile: it is empty, truncated, corrupt or of another kind.
        OSError: the storage failed.
    """
    try:
        if extension_kind is FileKind.PARQUET:
            return _probe_parquet(fs, path)
        if extension_kind.is_json:
            return _probe_json(fs, path, extension_kind)
        with fs.open(path, "rb") as file:
            is_file = file.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        return (_probe_arrow_file if is_file else _probe_arrow_stream)(fs, path)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise_if_storage(error)
        raise BadFile(f"cannot be read ({_first_line(error)})") from None


def raise_if_storage(error: BaseException) -> None:
    """Raise an OSError that came from the storage: one of a subclass, or with an errno. Arrow's own has neither."""
    if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
        raise error


def lines(read: Callable[[int], bytes], offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines and the byte offsets at which they start, counted from `offset`."""
    rest = b""
    while chunk := read(CHUNK_BYTES):
        pieces = (rest + chunk).split(b"\n")
        rest = pieces.pop()
        for piece in pieces:
            if piece.strip():
                yield offset, piece
            offset += len(piece) + 1
    if rest.strip():
        yield offset, rest


def _probe_parquet(fs: Any, path: str) -> Probe:
    with fs.open(path, "rb", cache_type="none") as file, pq.ParquetFile(file) as parquet:
        metadata, schema = parquet.metadata, parquet.schema_arrow
        marks, row = [], 0
        for index in range(metadata.num_row_groups):
            marks.append((row, index))
            row += metadata.row_group(index).num_rows
    if row != metadata.num_rows:
        raise BadFile(f"its footer says {metadata.num_rows} rows, its row groups {row}")
    return Probe(kind=FileKind.PARQUET, num_rows=row, schema=_checked(schema), marks=tuple(marks))


def _probe_arrow_file(fs: Any, path: str) -> Probe:
    with fs.open(path, "rb") as file:
        with pa.ipc.open_file(file) as whole:
            schema = whole.schema
        # One narrow column suffices to learn how many rows each batch has.
        options = pa.ipc.IpcReadOptions(included_fields=_narrowest(schema))
        with pa.ipc.open_file(file, options=options) as reader:
            marks, row = [], 0
            for index in range(reader.num_record_batches):
                marks.append((row, index))
                row += reader.get_batch(index).num_rows
    return Probe(kind=FileKind.ARROW_FILE, num_rows=row, schema=_checked(schema), marks=tuple(marks))


def _probe_arrow_stream(fs: Any, path: str) -> Probe:
    with fs.open(path, "rb") as file:
        native = pa.PythonFile(file, mode="r")
        reader = pa.ipc.open_stream(native)
        # Dictionaries stand in the stream before the batches that need them, so reading starts at its head.
        seekable = not any(_has_dictionary(field.type) for field in reader.schema)
        marks, row = [(0, 0)], 0
        while True:
            position = native.tell()
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                break
            if seekable:
                marks.append((row, position))
            row += batch.num_rows
        # A stream cut between two batches reads well; only the missing mark at its end tells.
        file.seek(-len(_STREAM_END), io.SEEK_END)
        if file.read() != _STREAM_END:
            raise BadFile("is cut short (no end-of-stream mark)")
    return Probe(kind=FileKind.ARROW_STREAM, num_rows=row, schema=_checked(reader.schema), marks=tuple(marks))


def _probe_json(fs: Any, path: str, kind: FileKind) -> Probe:
    marks, row = [(0, 0)], 0
    with fs.open(path, "rb") as file:
        stream = pa.CompressedInputStream(file, kind.codec) if kind.codec else file
        for offset, line in lines(stream.read):
            if not row and line.lstrip(b"\xef\xbb\xbf \t\r").startswith(b"["):
                raise BadFile("holds a JSON array; write one JSON object a line")
            if row and row % _MARK_EVERY_ROWS == 0 and kind.codec is None:
                marks.append((row, offset))
            row += 1
    return Probe(kind=kind, num_rows=row, schema=None, marks=tuple(marks))


def _checked(schema: pa.Schema) -> pa.Schema:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise BadFile(f"has columns of the same name: {twice}")
    return schema


def _narrowest(schema: pa.Schema) -> list[int]:
    widths = []
    for index, field in enumerate(schema):
        try:
            widths.append((field.type.bit_width, index))
        except ValueError:
            widths.append((1 << 16, index))
    return [min(widths)[1]] if widths else []


def _has_dictionary(data_type: pa.DataType) -> bool:
    if isinstance(data_type, pa.BaseExtensionType):
        return _has_dictionary(data_type.storage_type)
    if pat.is_dictionary(data_type):
        return True
    return any(_has_dictionary(data_type.field(index).type) for index in range(data_type.num_fields))


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
