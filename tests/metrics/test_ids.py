import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.ids import hash_ids, id_hashes, uniform

MASK = 2**64 - 1
DIGEST = int.from_bytes(b"alignpot", "big")
IDS = st.lists(st.text(max_size=40), min_size=1, max_size=30)


def mix(value: int) -> int:
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def hash_one(id_: str, seed: int) -> int:
    """The documented hash, one id at a time in Python integers."""
    gamma, raw = 0x9E3779B97F4A7C15, id_.encode()
    state = mix(seed + gamma & MASK) ^ len(raw) * gamma & MASK
    for start in range(0, len(raw), 8):
        state = mix((state ^ int.from_bytes(raw[start : start + 8], "little")) + gamma & MASK)
    return state


@given(IDS, st.integers(-5, 2**64 + 5))
def test_hash_is_the_documented_one_whatever_stands_beside_the_id(ids, seed):
    expected = [hash_one(id_, seed & MASK) for id_ in ids]
    assert hash_ids(pa.array(ids), seed).tolist() == expected
    assert hash_ids(pa.array(["x" * 50, *ids, ""]).slice(1, len(ids)), seed).tolist() == expected


def test_values_of_the_hash_are_frozen():
    # A change would draw other random subsets under the same seed.
    assert [hex(value) for value in hash_ids(pa.array(["", "a", "row-0001"]), 0).tolist()] == [
        hex(hash_one(id_, 0)) for id_ in ("", "a", "row-0001")
    ]
    assert hash_one("row-0001", 0) == 0x330EF1B4CF17666E


def test_the_digest_of_a_set_is_frozen_too():
    # The manifests of subsets hold it.
    assert (
        int(id_hashes(pa.array(["a", "row-0001"])).sum()) == hash_one("a", DIGEST) + hash_one("row-0001", DIGEST) & MASK
    )


def test_uniform_fills_the_unit_interval_evenly():
    values = uniform(pa.array([str(i) for i in range(100_000)]), 7)
    counts = np.histogram(values, bins=50, range=(0, 1))[0]
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_squared < 90  # 49 degrees of freedom, 99.97 %
    assert len(np.unique(values)) == 100_000
