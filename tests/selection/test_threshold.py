import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import DataError, IntegrityError
from pipeline.metrics.columns import float_column
from pipeline.selection import Threads, threshold
from pipeline.selection.source import parts_of
from pipeline.selection.streams import check_finite
from pipeline.selection.threshold import Search, find_cuts
from tests.selection.sources import CountedSource, ElsewherePasses

FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1.7e308, -1.7e308, 0.5, 2.0**-1022])
SCORES = st.lists(FEW | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60)
EMPTY = np.zeros(0)


@dataclass(frozen=True)
class Column:
    """The numbers of a column, in one group or shared out among several by another column."""

    columns: tuple[str, ...] = ("value",)
    num_groups: int = 1

    def values(self, block, cache):
        del cache
        values = float_column(block.rows, "value")
        if self.num_groups == 1:
            return [values]
        groups = float_column(block.rows, "group")
        return [values[groups == group] for group in range(self.num_groups)]


def source_of(scores, size=7, **columns):
    values = np.array(scores, dtype=np.float64) + 0.0
    return CountedSource(pa.table({"value": values, **columns}), (size,))


def find(source, searches, passes=None):
    passes = passes or Threads(num_threads=1)
    parts = parts_of(source, np.zeros(0, dtype=np.int64), "keep", passes.num_parts)
    return find_cuts(passes, parts, [Column()] * len(searches), [[search] for search in searches])


def check(scores, k, sample, passes=None):
    found = find(source_of(scores), [Search(k, len(scores), np.array(sample) + 0.0)], passes)
    check_cut(found[0][0], scores, k)


def check_cut(cut, scores, k):
    ordered = sorted(scores, reverse=True)
    assert cut.threshold == ordered[k - 1]
    assert cut.num_above == sum(score > ordered[k - 1] for score in scores)
    assert cut.num_tied == scores.count(ordered[k - 1])


@pytest.mark.parametrize("held", [2**18, 4, 0])
def test_cut_is_the_kth_largest_score_whatever_is_held_and_guessed(held, monkeypatch):
    monkeypatch.setattr(threshold, "_BUFFER", held)

    @given(SCORES, st.data())
    @example([0.0, -0.0, -5e-324, 5e-324], None)
    def check_all(scores, data):
        if data is None:
            for k in range(1, len(scores) + 1):
                check(scores, k, EMPTY)
            return
        k = data.draw(st.integers(1, len(scores)))
        check(scores, k, data.draw(st.sampled_from([EMPTY, scores, [1e300] * 9, [-1.0, 0.0, 1.0]])))

    check_all()


@pytest.mark.parametrize("make", [np.sort, lambda x: np.sort(x)[::-1], np.exp, np.round, lambda x: x * 1e-310, np.abs])
@pytest.mark.parametrize("share", [0.001, 0.4, 0.999])
def test_cut_agrees_with_a_full_sort_where_scores_do_not_fit(make, share, monkeypatch):
    monkeypatch.setattr(threshold, "_BUFFER", 100)
    scores = make(np.random.default_rng(3).normal(size=4000)) + 0.0
    k = int(share * 4000)
    [[cut]] = find(source_of(scores, 1000), [Search(k, 4000, scores[:500])])
    assert cut.threshold == np.sort(scores)[-k]
    assert cut.num_above < k <= cut.num_above + cut.num_tied


@pytest.mark.parametrize("held", [2**18, 0])
def test_scores_right_beside_a_misleading_guess_are_found(held, monkeypatch):
    monkeypatch.setattr(threshold, "_BUFFER", held)
    above, below = math.nextafter(1.0, 2.0), math.nextafter(1.0, 0.0)
    scores = [below, above, 1.0, below, above]
    for k in range(1, 6):
        check(scores, k, [1.0] * 100)


@pytest.mark.parametrize("held", [2**18, 60, 0])
def test_many_searches_share_the_passes_and_each_finds_its_own(held, monkeypatch):
    monkeypatch.setattr(threshold, "_BUFFER", held)
    rng = np.random.default_rng(0)
    scores = [*np.round(rng.normal(size=150), 1).tolist(), *rng.normal(size=50).tolist()]
    ks = [1, 2, 50, 51, 120, 199, 200] * 12  # more than the number of searches that buckets are made fewer for
    source = source_of(scores)
    found = find(source, [Search(k, 200, np.array(scores[::9])) for k in ks])
    for [cut], k in zip(found, ks, strict=True):
        check_cut(cut, scores, k)
    assert len(source.readings) <= 12


def test_each_group_has_a_cut_of_its_own_and_none_where_none_is_wanted():
    rng = np.random.default_rng(0)
    scores, groups = np.round(rng.normal(size=200), 1) + 0.0, rng.integers(0, 3, 200)
    sizes = [int((groups == group).sum()) for group in range(3)]
    source = source_of(scores, group=groups.astype(float))
    parts = parts_of(source, np.zeros(0, dtype=np.int64), "keep", 1)
    searches = [Search(5, sizes[0]), None, Search(sizes[2], sizes[2])]
    stream = Column(columns=("value", "group"), num_groups=3)
    [[first, second, third]] = find_cuts(Threads(num_threads=1), parts, [stream], [searches])
    check_cut(first, scores[groups == 0].tolist(), 5)
    assert second is None
    check_cut(third, scores[groups == 2].tolist(), sizes[2])


def test_parts_that_are_scanned_elsewhere_add_up():
    scores = np.round(np.random.default_rng(0).normal(size=300), 1).tolist()
    for k in (1, 77, 300):
        check(scores, k, EMPTY, ElsewherePasses())


def test_a_fair_sample_finds_the_cut_in_one_pass():
    scores = np.random.default_rng(0).normal(size=20_000)
    source = source_of(scores, 10_000)
    find(source, [Search(8000, 20_000, scores[::10])])
    assert len(source.readings) == 1


def test_no_search_takes_no_pass():
    source = source_of([1.0])
    parts = parts_of(source, np.zeros(0, dtype=np.int64), "keep", 1)
    assert find_cuts(Threads(num_threads=1), parts, [Column()], [[None]]) == [[None]]
    assert source.readings == []


def test_images_keep_the_order_and_both_zeros_are_one():
    ordered = np.array([-math.inf, -1.7e308, -1.0, -5e-324, -0.0, 0.0, 5e-324, 1.0, 1.7e308, math.inf])
    images = threshold._images(ordered)
    assert images[4] == images[5]
    steps = np.diff(images.astype(object))
    assert all(step > 0 for i, step in enumerate(steps) if i != 4)
    assert images[6] - images[5] == images[4] - images[3] == 1
    assert [threshold._score(int(image)) for image in images] == ordered.tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_overflows_is_an_error_with_a_count(bad):
    with pytest.raises(DataError, match="2 scores"):
        check_finite(np.array([1.0, bad, 2.0, bad]))


def test_finite_scores_whose_sum_overflows_are_no_error():
    check_finite(np.array([1.7e308] * 5 + [1.0]))
    [[cut]] = find(source_of([1.7e308] * 5 + [1.0]), [Search(6, 6)])
    assert cut.threshold == 1.0


def test_a_source_that_changes_between_passes_is_noticed():
    with pytest.raises(IntegrityError, match="gave 3 rows, an earlier one 4"):
        find(source_of([1.0, 2.0, 3.0]), [Search(1, 4)])


def test_scores_that_move_between_passes_end_in_an_error(monkeypatch):
    monkeypatch.setattr(threshold, "_BUFFER", 0)

    class Moving:
        columns = ("value",)
        num_groups = 1
        num_passes = 0

        def values(self, block, cache):
            del block, cache
            self.num_passes += 1
            return [np.full(4, 1.0 if self.num_passes % 2 else 100.0)]

    source = CountedSource(pa.table({"value": np.zeros(4)}), (4,), ())
    parts = parts_of(source, np.zeros(0, dtype=np.int64), "keep", 1)
    with pytest.raises(IntegrityError, match="changed between passes"):
        find_cuts(Threads(num_threads=1), parts, [Moving()], [[Search(2, 4, np.full(50, 50.0))]])
