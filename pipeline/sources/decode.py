"""Tables of source columns and lines of JSON as rows of Python values, and sampled rows of a source.

A row that cannot be decoded becomes a Drop in its place, so that no row shifts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.drops import Drop, Reason
from pipeline.sources.blocks import LINE, read_rows
from pipeline.sources.columns import Columns, Kind, is_json_type, kinds_of_rows, kinds_of_schema
from pipeline.sources.files import SourceScan
from pipeline.sources.formats import FORMATS
from pipeline.sources.rows import Row
from pipeline.sources.scores import ALL_SCORE_COLUMNS
from pipeline.sources.shards import shard_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The first rows of a source and the kinds of its columns."""

    columns: Columns
    rows: tuple[Row | Drop, ...]

    @property
    def decoded(self) -> list[Row]:
        """The rows that could be decoded."""
        return [row for row in self.rows if not isinstance(row, Drop)]


def rows_of_lines(table: pa.Table) -> list[Row | Drop]:
    """Each line of JSON as a row."""
    return [_row_of_line(line) for line in table.column(LINE).to_pylist()]


def rows_of_columns(table: pa.Table) -> list[Row | Drop]:
    """The rows of a table of source columns; those of Arrow's JSON type are parsed."""
    json_columns = [field.name for field in table.schema if is_json_type(field.type)]
    try:
        rows: list[Any] = table.to_pylist()
    except (ValueError, OverflowError):
        rows = [_row_or_drop(table, index) for index in range(table.num_rows)]
    return [_with_json(row, json_columns) for row in rows] if json_columns else rows


def sample_rows(fs: Any, scan: SourceScan, num_rows: int, *, first_file_only: bool) -> Sample:
    """The first rows of the source, or of its first file that has any, and the kinds of all its columns."""
    names = set(ALL_SCORE_COLUMNS).union(*(known.reads for known in FORMATS.values()))
    columns = () if scan.schema is None else tuple(name for name in scan.schema.names if name in names)
    rows: list[Row | Drop] = []
    for file in (file for file in scan.files if file.num_rows):
        if columns or file.kind.is_json:
            shard = shard_of(file, 0, min(num_rows - len(rows), file.num_rows))
            table = read_rows(fs, scan.root, shard, columns)
            rows += rows_of_lines(table) if file.kind.is_json else rows_of_columns(table)
        if first_file_only or len(rows) >= num_rows:
            break
    decoded = [row for row in rows if not isinstance(row, Drop)]
    return Sample(columns=_kinds(scan.schema, decoded), rows=tuple(rows))


def _kinds(schema: pa.Schema | None, rows: Sequence[Row]) -> dict[str, Kind]:
    seen = kinds_of_rows(rows)
    if schema is None:
        return seen
    json_columns = {field.name for field in schema if is_json_type(field.type)}
    kinds = kinds_of_schema(schema)
    return {name: seen.get(name, kind) if name in json_columns else kind for name, kind in kinds.items()}


def _row_of_line(line: bytes) -> Row | Drop:
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError:
        return Drop(Reason.UNDECODABLE_TEXT)
    try:
        row = json.loads(text)
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


def _with_json(row: Row | Drop, names: Sequence[str]) -> Row | Drop:
    if isinstance(row, Drop):
        return row
    try:
        parsed: Mapping[str, Any] = {name: json.loads(row[name]) for name in names if row[name] is not None}
    except (ValueError, RecursionError):
        return Drop(Reason.INVALID_JSON)
    return {**row, **parsed}
