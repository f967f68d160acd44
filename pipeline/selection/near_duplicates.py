"""Leaves out rows whose text repeats that of a better one, exactly or nearly: greedy, best row first.

A row is left out if it is a duplicate of a row that was kept before it; a row that was itself left out shields none.
Texts are compared after normalisation: Unicode NFKC, case folded, white space as single spaces.

    exact   equal normalised texts, by a digest of 128 bits
    near    Jaccard similarity of the sets of word 3-grams at or above a limit, as MinHash signatures estimate it: the
            share of equal places, with a standard error of sqrt(s (1 - s) / num_perm), 0.035 at 0.8 of 128

For near, words are runs of letters, digits and underscores; of scripts that write without spaces (Chinese, Japanese
kana) each character is a word. A text of one or two words has one shingle, all of it; a text without words is compared
as a whole. So texts too short for a 3-gram, empty ones among them, are duplicates where they are equal.

An index of signature bands proposes the kept rows to compare with. It has so many bands that a pair at the limit must
share one, so that the index never changes the result.
"""

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.metrics.columns import BoolArray, single_array
from pipeline.words import normalised, words_of

Kind: TypeAlias = Literal["exact", "near"]

_SHINGLE_WORDS: Final = 3
_BATCH: Final = 256  # sketches of rensa take two KiB each while they are compared
_TEXT: Final = pa.large_string()


class NearDuplicates:
    """Decides row by row, in the order the rows are given; give the best one first.

    Memory for each kept row: about 4 KiB for near at 128 places, 0.3 KiB for exact. Nothing of the rows left out.
    """

    def __init__(self, kind: Kind, similarity: float = 0.8, *, num_perm: int = 128, seed: int = 0) -> None:
        """similarity: least Jaccard similarity, above 0 and at most 1, of near-duplicates; exact does not read it.

        num_perm: places of a signature. seed: of the MinHash permutations.
        """
        self._index: _ExactIndex | _NearIndex = (
            _ExactIndex() if kind == "exact" else _NearIndex(similarity, num_perm, seed)
        )

    def admit(self, texts: Sequence[str]) -> BoolArray:
        """Which of the next rows are kept, bool [num_rows]; kept rows count for all that come later, in any call.

        texts: as `row_texts` gives them.
        """
        kept = np.zeros(len(texts), dtype=np.bool_)
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            kept[start : start + _BATCH] = [like is None for like in self._index.admit(batch)]
        return kept


def row_texts(table: pa.Table | pa.RecordBatch) -> list[str]:
    """All that is said in each row: the contents of prompt, chosen and rejected, line by line.

    Raises:
        SchemaError: one of the three columns is missing.
    """
    sides = [_contents(single_array(table, name)) for name in (schema.PROMPT, schema.CHOSEN, schema.REJECTED)]
    texts: list[str] = pc.binary_join_element_wise(*sides, pa.scalar("\n", _TEXT)).to_pylist()
    return texts


def shingles(text: str) -> list[str]:
    """The word 3-grams of a normalised text, with repeats; one shingle for a shorter text."""
    words = words_of(text)
    if len(words) < _SHINGLE_WORDS:
        return [" ".join(words) or text]
    return list(map(" ".join, zip(words, words[1:], words[2:], strict=False)))


def _contents(messages: pa.Array) -> pa.Array:
    """The contents of each row's turns, with tool calls and reasoning, joined by line breaks; nulls count as empty."""
    turns = messages.flatten()
    texts = pc.fill_null(pc.struct_field(turns, "content").cast(_TEXT), "")
    for name in schema.MESSAGE_FIELDS:
        if turns.type.get_field_index(name) >= 0:
            field = pc.struct_field(turns, name).cast(_TEXT)
            texts = pc.binary_join_element_wise(texts, field, pa.scalar("\n", _TEXT), null_handling="skip")
    num_turns = pc.fill_null(pc.list_value_length(messages), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(num_turns)]).astype(np.int64)
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), texts)
    return pc.binary_join(lists, pa.scalar("\n", _TEXT))


class _ExactIndex:
    """Digests of the texts that were kept, in order."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}

    def admit(self, texts: Sequence[str]) -> list[int | None]:
        """For each text the place, among the kept ones, of the one it repeats; None where it is kept itself."""
        found: list[int | None] = []
        for text in texts:
            num_kept = len(self._places)
            digest = hashlib.blake2b(normalised(text).encode(), digest_size=16).digest()
            place = self._places.setdefault(digest, num_kept)
            found.append(None if place == num_kept else place)
        return found


class _NearIndex:
    """Signatures of the texts that were kept, in order, and an index of their bands."""

    def __init__(self, similarity: float, num_perm: int, seed: int) -> None:
        if not 0 < similarity <= 1:
            raise ValueError(f"similarity must be above 0 and at most 1, got {similarity}")
        from rensa import RMinHash, RMinHashLSH

        self._num_equal = math.ceil(Fraction(str(similarity)) * num_perm)
        # Places that differ can spoil one band each: with one band more than those, a pair at the limit shares one.
        most_different = num_perm - self._num_equal
        num_bands = next(n for n in range(most_different + 1, num_perm + 1) if num_perm % n == 0)
        self._sketches = RMinHash
        self._bands = RMinHashLSH(similarity, num_perm, num_bands)
        self._num_perm, self._seed = num_perm, seed
        self._signatures: npt.NDArray[np.uint32] = np.empty((_BATCH, num_perm), dtype=np.uint32)
        self._num_kept = 0

    def admit(self, texts: Sequence[str]) -> list[int | None]:
        """For each text the place, among the kept ones, of the one most like it; None where it is kept itself."""
        tokens = [shingles(normalised(text)) for text in texts]
        sketches = self._sketches.from_token_sets(tokens, self._num_perm, self._seed)
        return [self._place_of(sketch) for sketch in sketches]

    def _place_of(self, sketch: Any) -> int | None:
        signature = np.array(sketch.digest(), dtype=np.uint32)
        near = np.sort(np.array(self._bands.query(sketch), dtype=np.int64))
        if near.size:
            num_equal = np.count_nonzero(self._signatures[near] == signature, axis=1)
            best = int(np.argmax(num_equal))
            if num_equal[best] >= self._num_equal:
                return int(near[best])
        if self._num_kept == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._signatures[self._num_kept] = signature
        self._bands.insert(self._num_kept, sketch)
        self._num_kept += 1
        return None
