"""Finds rows that bear one id: the same content twice is kept once, another content is refused.

Which row is kept does not depend on the order: where the scores of equal rows differ, as columns of a source may, a
hash of the scores decides. Works on hashes (128 bits of the id, 64 of content and of scores, 40 bytes a row) in buckets
on local disk, so that memory does not grow with the dataset: each bucket is sorted on its own.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema as names
from pipeline.errors import SourceError
from pipeline.storage.scored import ScoredDataset

_ROW: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("content", "<u8"), ("scores", "<u8"), ("position", "<i8")])
_SCORES: Final = tuple(field.name for field in names.SCORE_FIELDS if field.type == pa.float64())
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


def check_ids(dataset: ScoredDataset, *, bucket_rows: int = _BUCKET_ROWS, folder: Path | None = None) -> IdCheck:
    """Compare id and content of all scored rows; `folder` holds the buckets for the time being (40 bytes a row).

    Raises:
        SourceError: rows share an id but not their content; names up to ten such ids.
    """
    num_rows = dataset.manifest.num_scored
    num_buckets = min(_MOST_BUCKETS, max(1, -(-num_rows // bucket_rows)))
    duplicates = [np.empty(0, dtype=np.int64)]
    first_conflicts: list[int] = []
    num_conflicts = 0
    with tempfile.TemporaryDirectory(prefix="alignpot-ids-", dir=folder) as temporary:
        for rows in _buckets(dataset, num_buckets, bucket_rows, Path(temporary)):
            repeated, conflicts = _compare(rows)
            duplicates.append(repeated)
            num_conflicts += len(conflicts)
            first_conflicts = sorted([*first_conflicts, *conflicts.tolist()])[:_MOST_NAMED]
    if num_conflicts:
        ids = _ids_at(dataset, first_conflicts)
        raise SourceError(
            f"{num_conflicts} ids stand for rows of different content, first {ids}. Give each row an id of its own, "
            "or leave out source.id_column to have the content name the row; then score under another path."
        )
    return IdCheck(num_rows=num_rows, duplicate_positions=np.sort(np.concatenate(duplicates)))


def _buckets(dataset: ScoredDataset, num_buckets: int, bucket_rows: int, folder: Path) -> Iterator[NDArray[np.void]]:
    """All rows, in groups outside of which no id of theirs occurs."""
    held: list[NDArray[np.void]] = []
    num_held = 0
    for rows in _hashed(dataset):
        held.append(rows)
        num_held += len(rows)
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


def _spill(rows: NDArray[np.void], num_buckets: int, folder: Path) -> None:
    if not len(rows):
        return
    buckets = rows["low"] % np.uint64(num_buckets)
    order = np.argsort(buckets, kind="stable")
    found, starts = np.unique(buckets[order], return_index=True)
    for bucket, part in zip(found.tolist(), np.split(rows[order], starts[1:]), strict=True):
        with (folder / f"{bucket:05d}").open("ab") as file:
            part.tofile(file)


def _hashed(dataset: ScoredDataset) -> Iterator[NDArray[np.void]]:
    position = 0
    for table in dataset.tables([names.ID, names.CONTENT_DIGEST, *_SCORES]):
        rows = np.empty(table.num_rows, dtype=_ROW)
        id_hashes = _hashes(table[names.ID], 16).reshape(-1, 2)
        rows["high"], rows["low"] = id_hashes[:, 0], id_hashes[:, 1]
        rows["content"] = _hashes(table[names.CONTENT_DIGEST], 8)
        rows["scores"] = _score_hashes(table)
        rows["position"] = np.arange(position, position + table.num_rows)
        position += table.num_rows
        yield rows


def _hashes(column: pa.ChunkedArray, num_bytes: int) -> NDArray[np.uint64]:
    texts = column.to_pylist()
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=num_bytes).digest() for text in texts)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64, copy=False)


def _score_hashes(table: pa.Table) -> NDArray[np.uint64]:
    mixed = np.zeros(table.num_rows, dtype=np.uint64)
    for name in _SCORES:
        bits = np.ascontiguousarray(table[name].fill_null(0.0).to_numpy(), dtype=np.float64).view(np.uint64)
        mixed = (mixed ^ bits) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _compare(rows: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
