"""A look at one data file before anything runs: its rows, its schema and where a reader can start.

Of Parquet the footer is read, of an Arrow file the heads of its batches. An Arrow stream and text have no footer, so
they are read once from end to end. Claims that decide how much memory is used are compared with what the file holds;
values are checked where they are read.
"""

import io
import itertools
import re
import struct
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from pipeline.schema import MESSAGE_FIELDS
from pipeline.shown import listed
from pipeline.sources.arrow_checks import rows_of_file, rows_of_message, sound
from pipeline.sources.bounds import BadFile, check_count, rows_of_groups
from pipeline.sources.columns import plain_type
from pipeline.sources.records import records

_MARK_EVERY_ROWS: Final = 64
_MARK_EVERY_LANCE_ROWS: Final = 1024
_ARROW_FILE_MAGIC: Final = b"ARROW1"
_FIELDS: Final = {
    # Results of tools have id and name; `name` alone stands in every tool.
    name: re.compile(rb'"%b"\s*+:\s*+(?!null|\[\s*+\])' % ("tool_call_id" if name == "name" else name).encode())
    for name in MESSAGE_FIELDS
}
"""The names of fields of messages in JSON, where they have a value."""
_STREAM_END: Final = b"\xff\xff\xff\xff\0\0\0\0"
DAMAGE: Final = (
    pa.ArrowException, OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, struct.error,
    MemoryError, RecursionError, SystemError,
)  # fmt: skip
"""What reading a damaged file may raise besides BadFile. An OSError may be of the storage, see `damage_of`."""


class FileKind(StrEnum):
    """Container of a data file."""

    PARQUET = "parquet"
    ARROW_FILE = "arrow_file"
    ARROW_STREAM = "arrow_stream"
    LANCE = "lance"
    JSONL = "jsonl"
    JSONL_GZIP = "jsonl_gzip"
    JSONL_ZSTD = "jsonl_zstd"
    JSON_ARRAY = "json_array"
    JSON_ARRAY_GZIP = "json_array_gzip"
    JSON_ARRAY_ZSTD = "json_array_zstd"
    JSON_OBJECT = "json_object"
    JSON_OBJECT_GZIP = "json_object_gzip"
    JSON_OBJECT_ZSTD = "json_object_zstd"
    CSV = "csv"
    CSV_GZIP = "csv_gzip"
    CSV_ZSTD = "csv_zstd"
    TSV = "tsv"
    TSV_GZIP = "tsv_gzip"
    TSV_ZSTD = "tsv_zstd"

    @classmethod
    def of_text(cls, form: str, codec: str | None) -> Self:
        """The kind of a text file, of a form of `records` and with this compression."""
        return cls(f"{form}_{codec}" if codec else form)

    @property
    def is_json(self) -> bool:
        """Whether rows are read as JSON objects, without a schema."""
        return self not in {FileKind.PARQUET, FileKind.ARROW_FILE, FileKind.ARROW_STREAM, FileKind.LANCE}

    @property
    def codec(self) -> str | None:
        """Compression of the whole file, which bars seeking; None for none."""
        return next((codec for codec in ("gzip", "zstd") if self.endswith(codec)), None)

    @property
    def form(self) -> str:
        """What a text file holds, as `records` names it."""
        return self.removesuffix(f"_{self.codec}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a look at a file found. `marks` are (row, position): places where reading can start, rows ascending.

    A position is a row group of Parquet, a record batch of an Arrow file, a row of Lance, else a byte offset.
    """

    kind: FileKind
    num_rows: int
    schema: pa.Schema | None
    marks: tuple[tuple[int, int], ...]
    message_fields: frozenset[str] = frozenset()
    """Of JSON: the fields of messages, beside role and content, whose names stand in the file."""


def probe_file(fs: Any, path: str, extension_kind: FileKind) -> Probe:
    """Look at one file of the kind that its name tells.

    Raises:
        BadFile: it is empty, truncated, corrupt or of another kind.
        OSError: the storage failed.
    """
    try:
        # Parquet is read in few places, so read-ahead would only fetch bytes twice.
        kwargs = {"cache_type": "none"} if extension_kind is FileKind.PARQUET else {}
        with fs.open(path, "rb", **kwargs) as file:
            if extension_kind is FileKind.LANCE:
                return _probe_fragment(file)
            file.seek(0, io.SEEK_END)
            size = file.tell()
            file.seek(0)
            probe = _probe(file, extension_kind)
        check_count(probe.num_rows, size)
    except DAMAGE as error:
        raise BadFile(f"cannot be read ({damage_of(error)})") from None
    return probe


def damage_of(error: BaseException) -> str:
    """What an error of DAMAGE says, in one line.

    Raises:
        OSError: the error came from the storage: it is of a subclass or has an errno. Arrow's own has neither.
    """
    if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
        raise error
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _probe(file: Any, kind: FileKind) -> Probe:
    if kind.is_json:
        return _probe_text(file, kind)
    if kind is FileKind.PARQUET:
        with pq.ParquetFile(file) as parquet:
            rows, schema = rows_of_groups(file, parquet.metadata), parquet.schema_arrow
    else:
        is_file = file.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        file.seek(0)
        if not is_file:
            return _probe_arrow_stream(file)
        rows = rows_of_file(file)
        with pa.ipc.open_file(file) as reader:
            schema = reader.schema
    marks = tuple((first, index) for index, first in enumerate(itertools.accumulate(rows, initial=0)))[:-1]
    return Probe(kind=kind, num_rows=sum(rows), schema=_checked(schema), marks=marks)


def _probe_fragment(fragment: Any) -> Probe:
    """Of Lance, which its file system opens as rows instead of bytes, and which can be read from any row on."""
    if not hasattr(fragment, "batches"):
        raise BadFile("is a part of a Lance dataset; give source.path as lance://PATH of the whole")
    marks = tuple((row, row) for row in range(0, fragment.num_rows, _MARK_EVERY_LANCE_ROWS))
    return Probe(kind=FileKind.LANCE, num_rows=fragment.num_rows, schema=_checked(fragment.schema), marks=marks)


def _probe_arrow_stream(file: Any) -> Probe:
    native = pa.PythonFile(file, mode="r")
    messages = pa.ipc.MessageReader.open_stream(native)
    schema = pa.ipc.read_schema(messages.read_next_message())
    # Dictionaries stand in the stream before the batches that need them, so reading starts at its head.
    seekable = not any(_has_dictionary(field.type) for field in schema)
    marks, row = [(0, 0)], 0
    while True:
        position = native.tell()
        try:
            message = messages.read_next_message()
        except StopIteration:
            break
        num_rows = rows_of_message(message)
        if seekable:
            sound(pa.ipc.read_record_batch(message, schema))
            marks.append((row, position))
        row += num_rows
    # A stream cut between two batches reads well; only the missing mark at its end tells.
    file.seek(-len(_STREAM_END), io.SEEK_END)
    if file.read() != _STREAM_END:
        raise BadFile("is cut short (no end-of-stream mark)")
    return Probe(kind=FileKind.ARROW_STREAM, num_rows=row, schema=_checked(schema), marks=tuple(marks))


def _probe_text(file: Any, kind: FileKind) -> Probe:
    form, rows = records(file, kind.form, kind.codec)
    marks, row, fields = [(0, 0)], 0, set[str]()
    for place, text in rows:
        if row and row % _MARK_EVERY_ROWS == 0 and kind.codec is None:
            marks.append((row, place))
        if b"tool_call" in text or b"reasoning_content" in text:
            fields |= {name for name, pattern in _FIELDS.items() if pattern.search(text)}
        row += 1
    found = FileKind.of_text(form, kind.codec)
    return Probe(kind=found, num_rows=row, schema=None, marks=tuple(marks), message_fields=frozenset(fields))


def _checked(schema: pa.Schema) -> pa.Schema:
    twice = sorted(name for name, count in Counter(schema.names).items() if count > 1)
    if twice:
        raise BadFile(f"has columns of the same name: {listed(twice)}")
    for field in schema:
        plain_type(field.type)  # a name below that is no UTF-8 raises here
    return schema


def _has_dictionary(data_type: pa.DataType) -> bool:
    if isinstance(data_type, pa.BaseExtensionType):
        return _has_dictionary(data_type.storage_type)
    if pat.is_dictionary(data_type):
        return True
    return any(_has_dictionary(data_type.field(index).type) for index in range(data_type.num_fields))
