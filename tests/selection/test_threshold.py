import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import DataError, IntegrityError
from pipeline.selection import threshold
from pipeline.selection.threshold import find_cut

FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1.7e308, -1.7e308, 0.5, 2.0**-1022])
SCORES = st.lists(FEW | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60)
EMPTY = np.zeros(0)


def stream(scores, size=7):
    values = np.array(scores) + 0.0
    return lambda: (values[i : i + size] for i in range(0, len(values), size))


def check(scores, k, sample):
    cut = find_cut(stream(scores), k, np.array(sample) + 0.0, len(scores))
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
    scores = make(np.random.default_rng(3).normal(size=20_000)) + 0.0
    k = int(share * 20_000)
    cut = find_cut(stream(scores, 1000), k, scores[:500], 20_000)
    assert cut.threshold == np.sort(scores)[-k]
    assert cut.num_above < k <= cut.num_above + cut.num_tied


@pytest.mark.parametrize("held", [2**18, 0])
def test_scores_right_beside_a_misleading_guess_are_found(held, monkeypatch):
    monkeypatch.setattr(threshold, "_BUFFER", held)
    above, below = math.nextafter(1.0, 2.0), math.nextafter(1.0, 0.0)
    scores = [below, above, 1.0, below, above]
    for k in range(1, 6):
        check(scores, k, [1.0] * 100)


def test_a_fair_sample_finds_the_cut_in_one_pass():
    scores = np.random.default_rng(0).normal(size=100_000)
    passes = []

    def counted():
        passes.append(1)
        return stream(scores, 10_000)()

    find_cut(counted, 40_000, scores[::10], 100_000)
    assert len(passes) == 1


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
        find_cut(stream([1.0, bad, 2.0, bad]), 1, EMPTY, 4)


def test_finite_scores_whose_sum_overflows_are_no_error():
    assert find_cut(stream([1.7e308] * 5 + [1.0]), 6, EMPTY, 6).threshold == 1.0


def test_a_source_that_changes_between_passes_is_noticed():
    with pytest.raises(IntegrityError, match="gave 3 rows, the first one 4"):
        find_cut(stream([1.0, 2.0, 3.0]), 1, EMPTY, 4)


def test_scores_that_move_between_passes_end_in_an_error(monkeypatch):
    monkeypatch.setattr(threshold, "_BUFFER", 0)
    passes = []

    def moving():
        passes.append(1)
        return iter([np.full(4, 1.0 if len(passes) % 2 else 100.0)])

    with pytest.raises(IntegrityError, match="changed between passes"):
        find_cut(moving, 2, np.full(50, 50.0), 4)
