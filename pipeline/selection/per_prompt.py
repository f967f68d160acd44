"""At most n rows of a prompt: the best ones by score, ties by id (UTF-8 bytes, ascending)."""

import hashlib
import itertools
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.metrics.columns import FloatArray
from pipeline.schema import MESSAGE_FIELDS
from pipeline.selection.source import Positions
from pipeline.selection.threshold import IdsAt

KeyArray = npt.NDArray[np.uint64]

_TEXT: Final = pa.large_string()


def prompt_keys(prompts: pa.Array) -> KeyArray:
    """A 128-bit digest of each prompt, uint64 [num_prompts, 2]: equal for equal turns and for no others.

    prompts: array of list<struct<role: string, content: string, ...>>. A null prompt counts as one without turns; a
    null text differs from an empty one. The digest is BLAKE2b of the turns, each written with its lengths, so
    that no text can pass for the border between two fields; it is the same on every machine.
    """
    turns = prompts.flatten()
    fields = [name for name in MESSAGE_FIELDS if turns.type.get_field_index(name) >= 0]
    columns = [pc.struct_field(turns, name).cast(_TEXT) for name in ("role", "content", *fields)]
    # Turns lie one after another in the buffer, so a prompt is the bytes from its first turn to its last.
    parts = [part for texts in columns for part in (pc.fill_null(pc.binary_length(texts).cast(_TEXT), "-"), texts)]
    joined = pc.binary_join_element_wise(*parts, pa.scalar(":", _TEXT), null_handling="replace", null_replacement="")
    _, offsets_buffer, data_buffer = joined.buffers()
    starts = np.frombuffer(offsets_buffer, dtype=np.int64)[joined.offset : joined.offset + len(joined) + 1]
    num_turns = pc.fill_null(pc.list_value_length(prompts), 0).to_numpy(zero_copy_only=False)
    borders = starts[np.concatenate([[0], np.cumsum(num_turns)]).astype(np.int64)].tolist()
    data = memoryview(data_buffer or b"")
    digests = [hashlib.blake2b(data[a:b], digest_size=16).digest() for a, b in itertools.pairwise(borders)]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64, copy=False).reshape(-1, 2)


def beyond_cap(prompts: KeyArray, scores: FloatArray, n: int, ids_at: IdsAt) -> Positions:
    """Ascending places of the rows to leave out so that every prompt keeps its n best.

    prompts: `prompt_keys`, [num_rows, 2]. scores: float64 [num_rows], NaN where a row is no candidate. ids_at: ids of
    places; asked for ties at the n-th place of a prompt.
    """
    rows = np.flatnonzero(~np.isnan(scores))
    rows = rows[np.lexsort([-scores[rows], prompts[rows, 1], prompts[rows, 0]])]
    starts_prompt = _changes(prompts[rows, 0]) | _changes(prompts[rows, 1])
    rank = _ranks(starts_prompt)
    starts_score = starts_prompt | _changes(scores[rows])
    beyond = rank >= n
    # A tie matters where it holds both the n-th row of a prompt and the one after it.
    cut = np.flatnonzero((rank == n) & ~starts_score)
    if cut.size:
        tie = np.cumsum(starts_score)
        tied = np.flatnonzero(np.isin(tie, tie[cut]))
        by_place = np.argsort(rows[tied])
        ids = ids_at(rows[tied][by_place]).take(pa.array(np.argsort(by_place)))
        order = pc.sort_indices(pa.table({"tie": tie[tied], "id": ids}), sort_keys=[("tie", "ascending"),
                                                                                    ("id", "ascending")])  # fmt: skip
        # Ranks within a tie stand in order, so the rows sorted by id take them one after another.
        beyond[tied[order.to_numpy()]] = rank[tied] >= n
    return np.sort(rows[beyond])


def _changes(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Whether a value differs from the one before it; the first one does."""
    changes = np.ones(len(values), dtype=np.bool_)
    changes[1:] = values[1:] != values[:-1]
    return changes


def _ranks(starts: npt.NDArray[np.bool_]) -> Positions:
    """0, 1, 2, ... from every start on."""
    places = np.arange(len(starts), dtype=np.int64)
    return places - np.maximum.accumulate(np.where(starts, places, 0)) if len(starts) else places
