"""Ranges of rows out of one data file, as Arrow tables and as rows of Python values.

Reading starts at the nearest mark before the range. Rows of Parquet row groups and of compressed JSON Lines cannot be
reached without decoding the rows before them. So a process keeps a few half-read files open, and the next range of the
same file costs only that range.

A row that cannot be decoded becomes a Drop in its place, so that no row shifts.
"""

import contextlib
import itertools
import json
import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.drops import Drop, Reason
from pipeline.errors import IntegrityError, SourceError
from pipeline.faults import is_missing
from pipeline.shown import shown_path
from pipeline.sources.arrow_checks import sound, within_bounds
from pipeline.sources.bounds import BadFile
from pipeline.sources.columns import Row, holds_json, parsed_json
from pipeline.sources.probe import DAMAGE, FileKind, damage_of
from pipeline.sources.records import records
from pipeline.sources.shards import Shard, partitions
from pipeline.sources.unchanged import Moved, check_planned, is_pinned, state_of

_LINE: Final = "line"
_BATCH_ROWS: Final = 1024
_KEPT_CURSORS: Final = 4
_LOOKS: Final = 5  # at a file that changes under the reader


class Cursor:
    """A file being read forward; holds it open until closed."""

    def __init__(self, fs: Any, path: str, shard: Shard, columns: Sequence[str]) -> None:
        self._stack = contextlib.ExitStack()
        self._rest: pa.RecordBatch | None = None
        self.row = shard.mark[0]
        try:
            # Whole column chunks are asked for at once, so read-ahead would only fetch bytes twice.
            kwargs = {"cache_type": "none"} if shard.kind is FileKind.PARQUET else {}
            file = self._stack.enter_context(fs.open(path, "rb", **kwargs))
            self.is_pinned = is_pinned(file, shard.digest)
            self._batches = _batches(file, shard, columns)
        except BaseException:
            self.close()
            raise

    def take(self, first_row: int, num_rows: int) -> list[pa.RecordBatch]:
        """The rows of the range, fewer where the file ends; `first_row` must not be before `self.row`."""
        self._advance(first_row - self.row)
        return self._advance(num_rows)

    def close(self) -> None:
        """Close the file; the cursor is of no use then."""
        self._stack.close()

    def _advance(self, num_rows: int) -> list[pa.RecordBatch]:
        taken: list[pa.RecordBatch] = []
        while num_rows > 0:
            batch = next(self._batches, None) if self._rest is None else self._rest
            if batch is None:
                break
            piece = batch.slice(0, num_rows)
            self._rest = batch.slice(num_rows) if batch.num_rows > num_rows else None
            taken.append(piece)
            num_rows -= piece.num_rows
            self.row += piece.num_rows
        return taken


# Half-read files of this process, oldest first. A cursor in use is taken out, so two threads never share one.
_CURSORS: dict[tuple[Any, ...], Cursor] = {}
_CURSORS_LOCK = threading.Lock()


def read_rows(fs: Any, root: str, shard: Shard, columns: tuple[str, ...]) -> pa.Table:
    """Exactly the rows of the shard, in order, with the columns that its folders are named after.

    Rows of text come as one column of bytes, and `columns` is not read. A column that the file lacks is left out.

    Raises:
        SourceError: the file is corrupt, gone, or has fewer rows than when it was planned.
        IntegrityError: its content is not the one of the shard's digest.
        OSError: the storage failed.
    """
    shown = shown_path(shard.file)
    path = posixpath.join(root, shard.file)
    try:
        looks = (_unmoved(fs, path, shard, columns) for _ in range(_LOOKS))
        batches = next((found for found in looks if found is not None), None)
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
        raise SourceError(f"source file {shown} is gone since the run was planned. Put it back.") from None
    except BadFile as bad:
        raise SourceError(f"source file {shown} {bad}. Replace it.") from None
    except DAMAGE as error:
        why = damage_of(error)
        rows = f"rows {shard.first_row} to {shard.first_row + shard.num_rows - 1}"
        raise SourceError(f"source file {shown} is corrupt in {rows} or before: {why}. Replace it.") from None
    if batches is None:
        raise IntegrityError(f"source file {shown} changes while it is read. Run again when nothing writes to it.")
    num_read = sum(batch.num_rows for batch in batches)
    if num_read != shard.num_rows:
        raise SourceError(
            f"source file {shown} has changed since the run was planned: {num_read} rows from row "
            f"{shard.first_row} on, wanted {shard.num_rows}. Put the old file back, or write to another output."
        )
    table = pa.Table.from_batches(batches)
    for name, value in partitions(shard.file).items():
        if name not in table.column_names and (shard.kind.is_json or name in columns):
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    return table


def decoded(table: pa.Table, shard: Shard) -> list[Row | Drop]:
    """The rows of a table that `read_rows` gave for this shard."""
    return rows_of_lines(table) if shard.kind.is_json else rows_of_columns(table)


def rows_of_lines(table: pa.Table) -> list[Row | Drop]:
    """Each line of JSON as a row, with what the other columns hold."""
    rows = [_row_of_line(line) for line in table.column(_LINE).to_pylist()]
    more = table.drop_columns([_LINE]).to_pylist() if table.num_columns > 1 else []
    return (
        [row if isinstance(row, Drop) else {**own, **row} for row, own in zip(rows, more, strict=True)]
        if more
        else rows
    )


def rows_of_columns(table: pa.Table) -> list[Row | Drop]:
    """The rows of a table of source columns; what is of Arrow's JSON type is parsed."""
    json_columns = [field for field in table.schema if holds_json(field.type)]
    try:
        rows: list[Any] = table.to_pylist()
    except (ValueError, OverflowError):
        rows = [_row_or_drop(table, index) for index in range(table.num_rows)]
    return [_with_json(row, json_columns) for row in rows] if json_columns else rows


def _unmoved(fs: Any, path: str, shard: Shard, columns: tuple[str, ...]) -> list[pa.RecordBatch] | None:
    """The rows of the shard, read while the file was in one state; None if it changed meanwhile."""
    try:
        now = state_of(fs, path)
        check_planned(fs, path, shard.digest, (shard.state, now), shown=shown_path(shard.file))
        key = (type(fs), path, now, columns)
        with _CURSORS_LOCK:
            cursor = _CURSORS.pop(key, None)
        # A mark past the cursor is a shorter way than reading on to it.
        if cursor is not None and not shard.mark[0] <= cursor.row <= shard.first_row:
            cursor.close()
            cursor = None
        cursor = cursor or Cursor(fs, path, shard, columns)
        try:
            batches = cursor.take(shard.first_row, shard.num_rows)
            if not cursor.is_pinned and state_of(fs, path) != now:
                raise Moved
        except BaseException:
            cursor.close()
            raise
    except Moved:
        return None
    except OSError as error:
        if type(error).__name__ != "FileExpired":  # of s3fs: another object has the name since the file was opened
            raise
        return None
    with _CURSORS_LOCK:
        surplus = [_CURSORS.pop(key)] if key in _CURSORS else []
        _CURSORS[key] = cursor
        if len(_CURSORS) > _KEPT_CURSORS:
            surplus.append(_CURSORS.pop(next(iter(_CURSORS))))
    for old in surplus:
        old.close()
    return batches


def _batches(file: Any, shard: Shard, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if shard.kind is FileKind.PARQUET:
        return _parquet_batches(file, columns, shard.mark[1])
    if shard.kind is FileKind.ARROW_FILE:
        return _arrow_file_batches(file, columns, shard.mark[1])
    if shard.kind is FileKind.ARROW_STREAM:
        return _arrow_stream_batches(file, columns, shard.mark[1])
    if shard.kind is FileKind.LANCE:
        return map(sound, file.batches(columns, shard.mark[1], _BATCH_ROWS))
    return _line_batches(file, shard.kind, shard.mark)


def _parquet_batches(file: Any, columns: Sequence[str], first_group: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        # Arrow fetches the column chunks of all the row groups it is given before the first batch: give it one.
        for group in range(first_group, parquet.metadata.num_row_groups):
            batches = parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=list(columns))
            yield from map(within_bounds, batches)


def _arrow_file_batches(file: Any, columns: Sequence[str], first_batch: int) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_file(file) as whole:
        fields = [index for index, name in enumerate(whole.schema.names) if name in columns]
    with pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields)) as reader:
        for index in range(first_batch, reader.num_record_batches):
            yield sound(reader.get_batch(index))


def _arrow_stream_batches(file: Any, columns: Sequence[str], position: int) -> Iterator[pa.RecordBatch]:
    native = pa.PythonFile(file, mode="r")
    if position == 0:
        for batch in pa.ipc.open_stream(native):
            yield _selected(batch, columns)
        return
    schema = pa.ipc.read_schema(native)
    native.seek(position)
    while True:
        try:
            message = pa.ipc.read_message(native)
        except EOFError:
            return
        yield _selected(pa.ipc.read_record_batch(message, schema), columns)


def _selected(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    return sound(batch.select([name for name in batch.schema.names if name in columns]))


def _line_batches(file: Any, kind: FileKind, mark: tuple[int, int]) -> Iterator[pa.RecordBatch]:
    found = (line for _, line in records(file, kind.form, kind.codec, mark)[1])
    while held := list(itertools.islice(found, _BATCH_ROWS)):
        yield pa.record_batch([pa.array(held, pa.large_binary())], names=[_LINE])


def _row_of_line(line: bytes) -> Row | Drop:
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except UnicodeDecodeError:
        return Drop(Reason.UNDECODABLE_TEXT)
    except (ValueError, RecursionError):
        return Drop(Reason.INVALID_JSON)
    return row if isinstance(row, dict) else Drop(Reason.INVALID_JSON)


def _row_or_drop(table: pa.Table, index: int) -> Row | Drop:
    try:
        row: Row = table.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return Drop(Reason.UNDECODABLE_TEXT)
    except (ValueError, OverflowError):  # a time, where text is wanted, that Python cannot hold
        return Drop(Reason.WRONG_TYPE)
    return row


def _with_json(row: Row | Drop, fields: Sequence[pa.Field]) -> Row | Drop:
    if isinstance(row, Drop):
        return row
    try:
        parsed: Mapping[str, Any] = {field.name: parsed_json(row[field.name], field.type) for field in fields}
    except (ValueError, RecursionError):
        return Drop(Reason.INVALID_JSON)
    return {**row, **parsed}
