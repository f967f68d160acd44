"""Samples of a stream: small, spread over all of it, and the drawn one the same for any order and partition."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.selection import samples
from pipeline.selection.samples import DrawnSample, StridedSample
from tests.selection.sources import copied


@pytest.fixture(autouse=True)
def small_samples(monkeypatch):
    monkeypatch.setattr(samples, "STRIDED_ROWS", 20)
    monkeypatch.setattr(samples, "DRAWN_ROWS", 10)


def drawn(ids, parts):
    """The sample of rows whose value is twice the id, taken in and merged as `parts` says, block by block."""
    whole = DrawnSample()
    for part in parts:
        sample = DrawnSample()
        for block in part:
            names = [ids[i] for i in block]
            sample.add(pa.array(map(str, names), pa.string()), {"value": np.array(names, np.float64) * 2})
        whole.merge(copied(sample))
    return whole


CUTS = st.lists(st.integers(0, 80), max_size=6)


def cut_up(rows, cuts):
    bounds = sorted(min(cut, len(rows)) for cut in cuts)
    return [rows[a:b] for a, b in zip([0, *bounds], [*bounds, len(rows)], strict=True)]


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=80), st.randoms(use_true_random=False), CUTS, CUTS
)  # ids may repeat
def test_drawn_rows_are_the_same_for_any_order_and_partition(ids, random, part_cuts, block_cuts):
    order = list(range(len(ids)))
    one = drawn(ids, [[order]]).rows()["value"]
    random.shuffle(order)
    other = drawn(ids, [cut_up(part, block_cuts) for part in cut_up(order, part_cuts)]).rows()["value"]
    assert other.tolist() == one.tolist()


@given(st.sets(st.integers(0, 10_000), max_size=60))
def test_as_many_rows_are_drawn_as_there_is_room_for(ids):
    ids = list(ids)
    rows = drawn(ids, [cut_up(range(len(ids)), (7, 30))]).rows()
    values = rows["value"].tolist() if rows else []
    assert len(values) == min(len(ids), 10)
    assert set(values) <= {2.0 * id_ for id_ in ids}


@pytest.mark.parametrize(
    "parts", [[[range(90)]], [cut_up(range(90), (30, 60))], [[part] for part in cut_up(range(90), (30,))]]
)
def test_rows_of_one_id_are_drawn_together_or_not_at_all(parts):
    values = drawn([i % 30 for i in range(90)], parts).rows()["value"]
    assert {values.tolist().count(value) for value in set(values.tolist())} == {3}
    assert 10 <= values.size < 13


def test_every_row_is_as_likely_to_be_drawn(monkeypatch):
    monkeypatch.setattr(samples, "DRAWN_ROWS", 4000)
    values = drawn(range(20_000), [[range(20_000)]]).rows()["value"] / 2
    counts = np.histogram(values, bins=10, range=(0, 20_000))[0]
    assert counts.sum() == 4000
    assert np.abs(counts - 400).max() < 5 * np.sqrt(400 * 0.8)


def test_no_rows_give_an_empty_sample():
    assert DrawnSample().rows() == {}
    assert StridedSample().rows() == {}


@given(st.lists(st.integers(0, 90), min_size=1, max_size=9))
def test_a_strided_sample_is_every_nth_row_whatever_the_blocks(sizes):
    sample = StridedSample()
    start = 0
    for size in sizes:
        sample.add({"value": np.arange(start, start + size, dtype=np.float64)})
        start += size
    values = sample.rows()["value"]
    stride = 1
    while -(-start // stride) > 20:
        stride *= 2
    assert values.tolist() == list(range(0, start, stride))


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6))
def test_merged_strided_samples_give_each_part_its_share(sizes):
    whole = StridedSample()
    for part, size in enumerate(sizes):
        sample = StridedSample()
        sample.add({"part": np.full(size, float(part))})
        whole.merge(copied(sample))
    values = whole.rows()["part"]
    assert values.size <= 20
    if not sum(sizes):
        return
    stride = sum(sizes) / max(1, values.size)
    counts = np.bincount(values.astype(int), minlength=len(sizes))
    assert values.size >= min(10, sum(sizes)) - len(sizes)
    for size, count in zip(sizes, counts, strict=True):
        assert abs(count - size / stride) <= 6


def test_quantities_of_a_row_stay_together():
    sample, drawn_sample = StridedSample(), DrawnSample()
    values = np.arange(500.0)
    sample.add({"a": values, "b": -values})
    drawn_sample.add(pa.array(map(str, range(500))), {"a": values, "b": -values})
    for rows in (sample.rows(), drawn_sample.rows()):
        assert (rows["a"] == -rows["b"]).all()
