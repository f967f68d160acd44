"""Finds rows with the same id: repeated content is kept once, different content is refused.

Eight bytes a row are held: a hash of the id. Rows whose hash repeats are read again and compared by 128 bits of the id
and 64 of the content. Which of several equal rows is kept does not depend on their order: if their scores differ, as
columns of a source may, a hash of the scores decides.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema as names
from pipeline.errors import SourceError
from pipeline.metrics.columns import single_array
from pipeline.metrics.ids import HashArray, hash_ids
from pipeline.selection.source import Positions, Source
from pipeline.shown import listed, quoted

_SCORES: Final = tuple(field.name for field in names.SCORE_FIELDS if field.name != names.TRUNCATED)
_COLUMNS: Final = (names.ID, names.CONTENT_DIGEST, *_SCORES)
_ROW: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("content", "<u8"), ("scores", "<u8"), ("position", "<i8")])
_SEEDS: Final = {"high": 0x6869676820686173, "low": 0x6C6F772068617368}
_CONTENT_SEED: Final = 0x636F6E74656E7420
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_MOST_NAMED: Final = 10


def find_repeats(source: Source, hashes: HashArray) -> Positions:
    """Ascending positions of the rows to leave out, because they repeat the id and content of a kept one.

    hashes: `metrics.ids.id_hashes` of all rows, in order. Rows in memory may lack a content digest: their scores
    stand for the content.

    Raises:
        SourceError: rows share an id and differ in content; up to ten such ids are named.
    """
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not repeated.size:
        return np.zeros(0, dtype=np.int64)
    positions = np.flatnonzero(np.isin(hashes, repeated))
    left_out, conflicts = _compare(_details(source, positions))
    if len(conflicts):
        first = pa.concat_tables(source.take(conflicts[:_MOST_NAMED], [names.ID]))[names.ID].to_pylist()
        raise SourceError(
            f"{len(conflicts)} ids stand for rows of different content, first [{listed(first, show=quoted)}]. Give "
            "each row an id of its own, or leave out source.id_column to have the content name the row; then score "
            "under another path."
        )
    return left_out


def _details(source: Source, positions: Positions) -> NDArray[np.void]:
    """Hashes of id (two halves), content and scores, and the position, of each of these rows."""
    found = np.empty(len(positions), dtype=_ROW)
    start = 0
    columns = [name for name in (*_COLUMNS, *_named(source.schema.names)) if name in source.schema.names]
    for table in source.take(positions, columns):
        part = found[start : start + table.num_rows]
        ids = single_array(table, names.ID)
        for half, seed in _SEEDS.items():
            part[half] = hash_ids(ids, seed)
        part["scores"] = part["content"] = _score_hashes(table)
        if names.CONTENT_DIGEST in columns:
            part["content"] = hash_ids(single_array(table, names.CONTENT_DIGEST), _CONTENT_SEED)
        start += table.num_rows
    found["position"] = positions
    return found


def _named(columns: Sequence[str]) -> list[str]:
    """Columns of rewards that have names, and those that a judge gives."""
    named = [column for name in names.named_rewards(columns) for column in names.reward_columns(name)]
    return [*named, *(column for name in names.judged_rewards(columns) for column in names.lead_columns(name))]


def _score_hashes(table: pa.Table) -> HashArray:
    mixed = np.zeros(table.num_rows, dtype=np.uint64)
    for name in (name for name in (*_SCORES, *_named(table.schema.names)) if name in table.schema.names):
        column = table[name]
        present = column.is_valid().to_numpy().astype(np.uint64)
        mixed = (mixed ^ (_bits_of(column) * present) ^ (present << np.uint64(1))) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _bits_of(column: pa.ChunkedArray) -> HashArray:
    """A number of 64 bits for each value; the caller tells nulls apart."""
    if pa.types.is_list(column.type):
        if column.null_count == len(column):
            return np.zeros(len(column), dtype=np.uint64)
        return hash_ids(pa.array([str(value) for value in column.to_pylist()], pa.string()), _CONTENT_SEED)
    values = column.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy()
    return np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)


def _compare(rows: NDArray[np.void]) -> tuple[Positions, Positions]:
    """Positions of rows that repeat a kept one, and the first position of each id with several contents."""
    ordered = rows[np.lexsort([rows[name] for name in ("position", "scores", "content", "low", "high")])]
    starts_id = np.ones(len(ordered), dtype=np.bool_)
    starts_id[1:] = (ordered["high"][1:] != ordered["high"][:-1]) | (ordered["low"][1:] != ordered["low"][:-1])
    starts_content = starts_id.copy()
    starts_content[1:] |= ordered["content"][1:] != ordered["content"][:-1]
    group = np.cumsum(starts_id) - 1
    conflicting = np.unique(group[starts_content & ~starts_id])
    firsts = np.minimum.reduceat(ordered["position"], np.flatnonzero(starts_id))
    return np.sort(ordered["position"][~starts_content]), np.sort(firsts[conflicting])
