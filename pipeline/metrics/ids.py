"""A seeded 64-bit hash of row ids, the same on every machine and in any order of rows.

It draws random selections and sums up to digests that name a set of rows. It is no cryptographic hash: good against
chance, not against malice. The values are part of the file format of selections and must not change.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

HashArray = npt.NDArray[np.uint64]

_WORD: Final = 8  # bytes
_FEW: Final = 16
_MASK: Final = (1 << 64) - 1
_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_MASKS: Final = np.array([(1 << (8 * n)) - 1 for n in range(_WORD + 1)], dtype=np.uint64)
_DIGEST_SEED: Final = 0x616C69676E706F74


def hash_ids(ids: pa.Array, seed: int) -> HashArray:
    """Hash of (seed, id) for a string array, uint64 [num_ids]; null counts as the empty string.

    The state starts from the seed and the length in bytes; then the id's UTF-8 bytes, taken as little-endian 64-bit
    words with zeros after the end, are mixed in one by one with the SplitMix64 finaliser.
    """
    starts, lengths, words = _words_of(ids.cast(pa.large_string()))
    start = _mix(np.array([seed & _MASK], dtype=np.uint64) + _GAMMA)
    hashes = start ^ (lengths.astype(np.uint64) * _GAMMA)
    length_of_most = 0 if len(ids) <= _FEW else int(np.partition(lengths, -_FEW - 1)[-_FEW - 1])
    for offset in range(0, length_of_most, _WORD):
        left = lengths - offset
        shortest = int(left.min())
        if shortest >= _WORD:
            hashes = _mix((hashes ^ words[starts + offset]) + _GAMMA)
            continue
        rows = slice(None) if shortest > 0 else np.flatnonzero(left > 0)
        word = words[starts[rows] + offset] & _MASKS[np.minimum(left[rows], _WORD)]
        hashes[rows] = _mix((hashes[rows] ^ word) + _GAMMA)
    done = -(-length_of_most // _WORD) * _WORD
    for row in np.flatnonzero(lengths > done).tolist():  # few: arrays would cost more than they carry
        rest = words[starts[row] + done : starts[row] + lengths[row] : _WORD].tolist()
        rest[-1] &= int(_MASKS[(int(lengths[row]) - 1) % _WORD + 1])
        hashes[row] = _mixed_in(int(hashes[row]), rest)
    return hashes


def uniform(ids: pa.Array, seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each id, uniform, independent of the other rows and their order."""
    return _unit(hash_ids(ids, seed))


def uniform_of_hashes(hashes: HashArray, seed: int) -> npt.NDArray[np.float64]:
    """The same for hashes: equal hashes have equal numbers."""
    return _unit(_mix(hashes ^ _mix(np.array([seed & _MASK], dtype=np.uint64) + _GAMMA)))


def id_hashes(ids: pa.Array) -> HashArray:
    """One hash of each id, uint64 [num_ids]; the sum of those of a set, modulo 2**64, names the set."""
    return hash_ids(ids, _DIGEST_SEED)


def _words_of(ids: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], HashArray]:
    """Start of each id in bytes, its length, and the 8 bytes from every byte position on as little-endian words."""
    if len(ids) == 0:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, np.zeros(0, dtype=np.uint64)
    _, offsets_buffer, data_buffer = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[ids.offset : ids.offset + len(ids) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros(last - first + _WORD, dtype=np.uint8)
    if last > first:
        data[: last - first] = np.frombuffer(data_buffer, dtype=np.uint8)[first:last]
    words: HashArray = np.ndarray(shape=(last - first + 1,), dtype="<u8", buffer=data.data, strides=(1,))
    return offsets[:-1] - first, np.diff(offsets), words


def _mixed_in(state: int, words: list[int]) -> int:
    """The state after the words of one id."""
    gamma, mix_1, mix_2 = int(_GAMMA), int(_MIX_1), int(_MIX_2)
    for word in words:
        value = (state ^ word) + gamma & _MASK
        value = (value ^ value >> 30) * mix_1 & _MASK
        value = (value ^ value >> 27) * mix_2 & _MASK
        state = value ^ value >> 31
    return state


def _unit(hashes: HashArray) -> npt.NDArray[np.float64]:
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: HashArray) -> HashArray:
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values ^= values >> np.uint64(27)
    values *= _MIX_2
    values ^= values >> np.uint64(31)
    return values
