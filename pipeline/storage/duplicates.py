"""Finds rows that bear one id: the same content twice is kept once, another content is refused.

Which row is kept does not depend on the order: where the scores of equal rows differ, as columns of a source may, a
hash of the scores decides. Works on hashes (128 bits of the id, 64 of content and of scores, 40 bytes a row) in buckets
on local disk, so that memory does not grow with the dataset: each bucket is sorted on its own. Parts of a dataset can
be hashed anywhere and in any order; `find_duplicates` takes what they gave.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema as names
from pipeline.errors import SourceError
from pipeline.metrics.columns import single_array
from pipeline.metrics.ids import HashArray, hash_ids
from pipeline.scratch import scratch_folder
from pipeline.shown import listed, quoted
from pipeline.storage.scored import ScoredDataset

_SCORES: Final = tuple(field.name for field in names.SCORE_FIELDS if field.name != names.TRUNCATED)
COLUMNS: Final = (names.ID, names.CONTENT_DIGEST, *_SCORES)
"""Columns that `hashed` reads."""

HashedRows = NDArray[np.void]
"""Rows as hashes: high and low half of the id's, content's, scores', and the row's position; 40 bytes each."""

_ROW: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("content", "<u8"), ("scores", "<u8"), ("position", "<i8")])
_SEEDS: Final = {"high": 0x6869676820686173, "low": 0x6C6F772068617368}
_CONTENT_SEED: Final = 0x636F6E74656E7420
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_BUCKET_ROWS: Final = 2**20
_MOST_BUCKETS: Final = 4096
_MOST_NAMED: Final = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IdCheck:
    """How often ids repeat in a scored dataset that has no conflicts."""

    num_rows: int
    """Scored rows."""
    duplicate_positions: NDArray[np.int64]
    """Sorted 0-based positions, counted over the scored rows in order, of the rows to leave out."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Ids that stand in several rows."""

    duplicate_positions: NDArray[np.int64]
    """Sorted positions of rows that repeat the content of a kept one."""
    num_conflicts: int
    """Ids that stand for different contents."""
    first_conflicts: tuple[int, ...]
    """Sorted first positions of up to ten such ids."""


def check_ids(dataset: ScoredDataset, *, bucket_rows: int = _BUCKET_ROWS, folder: Path | None = None) -> IdCheck:
    """Compare id and content of all scored rows; `folder` holds the buckets for the time being (40 bytes a row).

    Raises:
        SourceError: rows share an id but not their content; names up to ten such ids.
    """
    num_rows = dataset.manifest.num_scored
    rows = hashed_rows(dataset.tables(COLUMNS), 0)
    found = find_duplicates(rows, num_rows, bucket_rows=bucket_rows, folder=folder)
    check_conflicts(dataset, found)
    return IdCheck(num_rows=num_rows, duplicate_positions=found.duplicate_positions)


def check_conflicts(dataset: ScoredDataset, found: Repeats) -> None:
    """Raise a SourceError that names up to ten ids of different contents, if there are any."""
    if found.num_conflicts:
        ids = listed(_ids_at(dataset, [*found.first_conflicts]), show=quoted)
        raise SourceError(
            f"{found.num_conflicts} ids stand for rows of different content, first [{ids}]. Give each row an id of its "
            "own, or leave out source.id_column to have the content name the row; then score under another path."
        )


def hashed_rows(tables: Iterable[pa.Table], first_position: int) -> Iterator[HashedRows]:
    """The rows of each table as hashes; the first row of the first table is at `first_position` in the dataset."""
    for table in tables:
        yield hashed(table, first_position)
        first_position += table.num_rows


def hashed(table: pa.Table, first_position: int) -> HashedRows:
    """The rows of a table with COLUMNS as hashes, [num_rows]; good against chance, not against malice."""
    rows: HashedRows = np.empty(table.num_rows, dtype=_ROW)
    ids = single_array(table, names.ID)
    for half, seed in _SEEDS.items():
        rows[half] = hash_ids(ids, seed)
    rows["content"] = hash_ids(single_array(table, names.CONTENT_DIGEST), _CONTENT_SEED)
    rows["scores"] = _score_hashes(table)
    rows["position"] = np.arange(first_position, first_position + table.num_rows)
    return rows


def find_duplicates(
    rows: Iterable[HashedRows], num_rows: int, *, bucket_rows: int = _BUCKET_ROWS, folder: Path | None = None
) -> Repeats:
    """Ids that repeat among all rows of a dataset, in arrays that may come in any order.

    num_rows: about how many rows there are; it decides the number of buckets and nothing else.
    """
    num_buckets = min(_MOST_BUCKETS, max(1, -(-num_rows // bucket_rows)))
    duplicates = [np.empty(0, dtype=np.int64)]
    first_conflicts: list[int] = []
    num_conflicts = 0
    with scratch_folder("ids", folder) as temporary:
        for bucket in _buckets(rows, num_buckets, bucket_rows, temporary):
            repeated, conflicts = _compare(_sharing_an_id(bucket))
            duplicates.append(repeated)
            num_conflicts += len(conflicts)
            first_conflicts = sorted([*first_conflicts, *conflicts.tolist()])[:_MOST_NAMED]
    return Repeats(
        duplicate_positions=np.sort(np.concatenate(duplicates)),
        num_conflicts=num_conflicts,
        first_conflicts=tuple(first_conflicts),
    )


def _buckets(rows: Iterable[HashedRows], num_buckets: int, bucket_rows: int, folder: Path) -> Iterator[HashedRows]:
    """All rows, in groups outside of which no id of theirs occurs."""
    held: list[HashedRows] = []
    num_held = 0
    for part in rows:
        held.append(part)
        num_held += len(part)
        if num_buckets > 1 and num_held >= bucket_rows:
            _spill(np.concatenate(held), num_buckets, folder)
            held, num_held = [], 0
    rest = np.concatenate([np.empty(0, dtype=_ROW), *held])
    if num_buckets == 1:
        yield rest
        return
    _spill(rest, num_buckets, folder)
    for path in sorted(folder.iterdir()):
        yield np.fromfile(path, dtype=_ROW)
        path.unlink()


def _spill(rows: HashedRows, num_buckets: int, folder: Path) -> None:
    if not len(rows):
        return
    buckets = rows["low"] % np.uint64(num_buckets)
    order = np.argsort(buckets, kind="stable")
    found, starts = np.unique(buckets[order], return_index=True)
    for bucket, part in zip(found.tolist(), np.split(rows[order], starts[1:]), strict=True):
        with (folder / f"{bucket:05d}").open("ab") as file:
            part.tofile(file)


def _score_hashes(table: pa.Table) -> HashArray:
    mixed = np.zeros(table.num_rows, dtype=np.uint64)
    for name in _SCORES:
        column = table[name]
        present = column.is_valid().to_numpy().astype(np.uint64)
        mixed = (mixed ^ (_bits_of(column) * present) ^ (present << np.uint64(1))) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _bits_of(column: pa.ChunkedArray) -> HashArray:
    """A number of 64 bits for each value; what stands for null is told apart by the caller."""
    if pa.types.is_list(column.type):
        if column.null_count == len(column):
            return np.zeros(len(column), dtype=np.uint64)
        return hash_ids(pa.array([str(value) for value in column.to_pylist()], pa.string()), _CONTENT_SEED)
    values = column.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy()
    return np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)


def _sharing_an_id(rows: HashedRows) -> HashedRows:
    """The rows that may share their id with another one: all but those whose low half of the hash stands alone."""
    if len(rows) < 2:
        return rows[:0]
    low = np.sort(rows["low"])
    repeated = np.unique(low[1:][low[1:] == low[:-1]])
    if not repeated.size:
        return rows[:0]
    place = np.minimum(np.searchsorted(repeated, rows["low"]), repeated.size - 1)
    shared: HashedRows = rows[repeated[place] == rows["low"]]
    return shared


def _compare(rows: HashedRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of rows that repeat a kept one, and the first position of each id with several contents."""
    ordered = rows[np.lexsort([rows[name] for name in ("position", "scores", "content", "low", "high")])]
    starts_id = np.ones(len(ordered), dtype=bool)
    starts_id[1:] = (ordered["high"][1:] != ordered["high"][:-1]) | (ordered["low"][1:] != ordered["low"][:-1])
    starts_content = starts_id.copy()
    starts_content[1:] |= ordered["content"][1:] != ordered["content"][:-1]
    group = np.cumsum(starts_id) - 1
    conflicting = np.unique(group[starts_content & ~starts_id])
    firsts = np.minimum.reduceat(ordered["position"], np.flatnonzero(starts_id)) if len(ordered) else group
    return ordered["position"][~starts_content], firsts[conflicting]


def _ids_at(dataset: ScoredDataset, positions: list[int]) -> list[str]:
    """The ids at sorted positions."""
    found: list[str] = []
    start = 0
    for table in dataset.tables([names.ID]):
        while len(found) < len(positions) and positions[len(found)] < start + table.num_rows:
            found.append(table[names.ID][positions[len(found)] - start].as_py())
        if len(found) == len(positions):
            break
        start += table.num_rows
    return found
