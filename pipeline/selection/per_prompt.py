"""At most n rows of a prompt: the best ones by score, ties by id (UTF-8 bytes, ascending).

Prompts are told apart by a 128-bit digest of their turns. Rows are put into buckets by that digest on local disk, 40
bytes and the id for each, so that memory does not grow with the dataset: each bucket is sorted on its own. The result
depends on the set of rows alone, on neither their order nor the arrays they come in.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError, IntegrityError
from pipeline.metrics.columns import FloatArray
from pipeline.scratch import scratch_folder
from pipeline.shown import quoted

KeyArray = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

_ROW: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("score", "<f8"), ("position", "<i8"), ("id_bytes", "<i8")])
_BUCKET_ROWS: Final = 2**20
_MOST_BUCKETS: Final = 4096
_TEXT: Final = pa.large_string()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptRows:
    """Some ranked rows. keys: `prompt_keys` of their prompts, uint64 [num_rows, 2]. scores: float64 [num_rows]. ids:
    string array of that length. positions: int64 [num_rows], of the rows among all rows of the dataset.
    """

    keys: KeyArray
    scores: FloatArray
    ids: pa.Array
    positions: Positions


def prompt_keys(prompts: pa.Array) -> KeyArray:
    """A 128-bit digest of each prompt, uint64 [num_prompts, 2]: equal for equal turns and for no others.

    prompts: array of list<struct<role: string, content: string>>. A null prompt counts as one without turns; a null
    role or content differs from an empty one. The digest is BLAKE2b of the turns, each written with its lengths, so
    that no text can pass for the border between two fields; it is the same on every machine.
    """
    turns = prompts.flatten()
    role, content = (pc.struct_field(turns, name).cast(_TEXT) for name in ("role", "content"))
    # Turns lie one after another in the buffer, so a prompt is the bytes from its first turn to its last.
    parts = (_length(role), role, _length(content), content)
    joined = pc.binary_join_element_wise(*parts, pa.scalar(":", _TEXT), null_handling="replace", null_replacement="")
    _, offsets_buffer, data_buffer = joined.buffers()
    starts = np.frombuffer(offsets_buffer, dtype=np.int64)[joined.offset : joined.offset + len(joined) + 1]
    num_turns = pc.fill_null(pc.list_value_length(prompts), 0).to_numpy(zero_copy_only=False)
    borders = starts[np.concatenate([[0], np.cumsum(num_turns)]).astype(np.int64)].tolist()
    data = memoryview(data_buffer or b"")
    digests = [hashlib.blake2b(data[a:b], digest_size=16).digest() for a, b in itertools.pairwise(borders)]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64, copy=False).reshape(-1, 2)


def beyond_cap(
    rows: Iterable[PromptRows],
    n: int,
    num_rows: int,
    *,
    bucket_rows: int = _BUCKET_ROWS,
    folder: Path | None = None,
) -> Positions:
    """Ascending positions of the rows to leave out so that every prompt keeps its n best, n at least 1.

    num_rows: about how many rows come; it decides the number of buckets and nothing else. folder: where the buckets lie
    for the time being.

    Raises:
        DataError: a score is NaN.
        IntegrityError: an id repeats among the rows of equal score at the n-th place of a prompt.
    """
    num_buckets = min(_MOST_BUCKETS, max(1, -(-num_rows // bucket_rows)))
    left_out = [np.empty(0, dtype=np.int64)]
    with scratch_folder("prompts", folder) as temporary:
        left_out += [_beyond(each, n) for each in _buckets(rows, num_buckets, bucket_rows, temporary)]
    return np.sort(np.concatenate(left_out))


def _length(texts: pa.Array) -> pa.Array:
    """Length of each text in bytes, written out; a null's is a dash."""
    return pc.fill_null(pc.binary_length(texts).cast(_TEXT), "-")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bucket:
    """Rows with the bytes of their ids, all ids one after another in the order of the rows."""

    rows: npt.NDArray[np.void]
    ids: bytes

    def ids_at(self, rows: npt.NDArray[np.int64]) -> pa.Array:
        ends = np.cumsum(self.rows["id_bytes"])
        offsets = np.concatenate([[0], ends]).astype(np.int64)
        every = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(self.ids)]
        )
        return every.take(pa.array(rows))


def _buckets(rows: Iterable[PromptRows], num_buckets: int, bucket_rows: int, folder: Path) -> Iterator[_Bucket]:
    """All rows, in groups outside of which no prompt of theirs occurs."""
    held: list[_Bucket] = []
    num_held = 0
    for part in rows:
        if np.isnan(part.scores).any():
            raise DataError("a row without a score reached the limit of rows per prompt. Leave such rows out before.")
        held.append(_packed(part))
        num_held += len(held[-1].rows)
        if num_buckets > 1 and num_held >= bucket_rows:
            _spill(_joined(held), num_buckets, folder)
            held, num_held = [], 0
    if num_buckets == 1:
        yield _joined(held)
        return
    _spill(_joined(held), num_buckets, folder)
    for path in sorted(folder.glob("*.rows")):
        ids = path.with_suffix(".ids")
        yield _Bucket(rows=np.fromfile(path, dtype=_ROW), ids=ids.read_bytes())
        path.unlink()
        ids.unlink()


def _packed(part: PromptRows) -> _Bucket:
    ids = part.ids.cast(pa.large_binary())
    rows = np.empty(len(ids), dtype=_ROW)
    rows["high"], rows["low"] = part.keys[:, 0], part.keys[:, 1]
    rows["score"], rows["position"] = part.scores, part.positions
    rows["id_bytes"] = pc.binary_length(ids).to_numpy(zero_copy_only=False)
    return _Bucket(rows=rows, ids=_bytes_of(ids))


def _bytes_of(ids: pa.LargeBinaryArray) -> bytes:
    if len(ids) == 0:
        return b""
    _, offsets_buffer, data_buffer = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)
    return bytes(memoryview(data_buffer or b"")[offsets[ids.offset] : offsets[ids.offset + len(ids)]])


def _joined(parts: list[_Bucket]) -> _Bucket:
    rows = np.concatenate([np.empty(0, dtype=_ROW), *(part.rows for part in parts)])
    return _Bucket(rows=rows, ids=b"".join(part.ids for part in parts))


def _spill(held: _Bucket, num_buckets: int, folder: Path) -> None:
    if not len(held.rows):
        return
    buckets = held.rows["low"] % np.uint64(num_buckets)
    order = np.argsort(buckets, kind="stable")
    found, starts = np.unique(buckets[order], return_index=True)
    ids = held.ids_at(order)
    ends = [*starts[1:].tolist(), len(order)]
    for bucket, start, end in zip(found.tolist(), starts.tolist(), ends, strict=True):
        with (folder / f"{bucket:05d}.rows").open("ab") as file:
            held.rows[order[start:end]].tofile(file)
        with (folder / f"{bucket:05d}.ids").open("ab") as file:
            file.write(_bytes_of(ids.slice(start, end - start)))


def _beyond(bucket: _Bucket, n: int) -> Positions:
    """Positions of the bucket's rows that come after the n-th of their prompt."""
    rows = bucket.rows
    order = np.lexsort([-rows["score"], rows["low"], rows["high"]])
    ordered = rows[order]
    starts_prompt = _changes(ordered["high"]) | _changes(ordered["low"])
    rank = _ranks(starts_prompt)
    starts_score = starts_prompt | _changes(ordered["score"])
    tie = np.cumsum(starts_score) - 1
    # A tie matters where it holds both the n-th row of a prompt and the one after it.
    cut = np.flatnonzero((rank == n) & ~starts_score)
    beyond = rank >= n
    if cut.size:
        at_cut = np.zeros(int(tie[-1]) + 1, dtype=np.bool_)
        at_cut[tie[cut]] = True
        tied = np.flatnonzero(at_cut[tie])
        by_id = _by_id(tie[tied], bucket.ids_at(order[tied]))
        # Ranks within a tie stand in order, so that the rows sorted by id take them one after another.
        beyond[tied[by_id]] = rank[tied] >= n
    positions: Positions = ordered["position"][beyond]
    return positions


def _by_id(tie: npt.NDArray[np.int64], ids: pa.Array) -> npt.NDArray[np.int64]:
    """Order of the rows of each tie by id, the ties one after another."""
    table = pa.table({"tie": tie, "id": ids})
    order: npt.NDArray[np.int64] = (
        pc.sort_indices(table, sort_keys=[("tie", "ascending"), ("id", "ascending")]).to_numpy().astype(np.int64)
    )
    ordered = ids.take(pa.array(order))
    same = pc.equal(ordered.slice(1), ordered.slice(0, len(ordered) - 1)).to_numpy(zero_copy_only=False)
    repeats = np.flatnonzero(same & (np.diff(tie[order]) == 0))
    if repeats.size:
        repeated = quoted(ordered[int(repeats[0])].as_py().decode())
        raise IntegrityError(
            f"id {repeated} stands in two rows of one prompt and one score; name the duplicates of the scored "
            "dataset, or remove them."
        )
    return order


def _changes(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Whether a value differs from the one before it; the first one does."""
    changes = np.ones(len(values), dtype=np.bool_)
    changes[1:] = values[1:] != values[:-1]
    return changes


def _ranks(starts: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """0, 1, 2, ... from every start on."""
    places = np.arange(len(starts), dtype=np.int64)
    return places - np.maximum.accumulate(np.where(starts, places, 0)) if len(starts) else places
