"""The k best of some scores against a full sort, whatever a sample says of them."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import IntegrityError
from pipeline.selection import threshold
from pipeline.selection.threshold import best, kth_largest

FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1.7e308, -1.7e308, math.inf, -math.inf, math.nan])
SCORES = st.lists(FEW | st.floats(), min_size=1, max_size=60).filter(lambda values: not all(map(math.isnan, values)))


def ordered(scores) -> list[float]:
    """Those that count, largest first."""
    return sorted((float(score) for score in scores if not math.isnan(score)), reverse=True)


@given(SCORES, st.integers(1, 20), st.data())
def test_the_kth_largest_is_that_of_a_full_sort(scores, sample, data):
    k = data.draw(st.integers(1, len(ordered(scores))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threshold, "_SAMPLE", sample)
        assert kth_largest(np.array(scores), k) == ordered(scores)[k - 1]


DRAWS = {
    "untied": lambda rng, n: rng.normal(size=n),
    "tied": lambda rng, n: np.round(rng.normal(size=n)),
    "one value": lambda _, n: np.ones(n),
    "sorted": lambda rng, n: np.sort(rng.standard_t(1, n)),
    "two values": lambda rng, n: (rng.random(n) < 0.01).astype(np.float64),
    "infinities": lambda rng, n: rng.choice([-np.inf, 0.0, 1.0, np.inf], n),
    "a wave that the stride of the sample follows": lambda _, n: np.arange(n) % 4.0,
    "beside each other": lambda rng, n: np.nextafter(1.0, rng.choice([0.0, 1.0, 2.0], n)),
}


@given(
    st.integers(0, 2**32),
    st.sampled_from(sorted(DRAWS)),
    st.sampled_from([395, 400, 401, 500, 2000]),
    st.sampled_from([0.0, 0.01, 0.5, 0.97, 0.999]),
    st.sampled_from(["first", "last", "any"]),
)
@example(0, "untied", 2000, 0.999, "any")
def test_sizes_around_the_limit_of_the_sample_agree_with_a_full_sort(seed, draw, size, num_missing, place):
    rng = np.random.default_rng(seed)
    scores = DRAWS[draw](rng, size)
    scores[rng.random(size) < num_missing] = math.nan
    scores[rng.integers(size)] = 0.5
    wanted = ordered(scores)
    k = {"first": 1, "last": len(wanted), "any": int(rng.integers(1, len(wanted) + 1))}[place]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threshold, "_SAMPLE", 100)
        patch.setattr(threshold, "_CHUNK", 64)
        assert kth_largest(scores, k) == wanted[k - 1]


def cut_of(scores, ids, k):
    """Places and cut; also the places whose ids were asked for."""
    asked = []

    def ids_at(places):
        asked.extend(places.tolist())
        return pa.array(ids).take(pa.array(places))

    places, cut = best(np.array(scores, dtype=np.float64), k, ids_at)
    return places.tolist(), cut, asked


@given(SCORES, st.randoms(use_true_random=False), st.data())
def test_the_best_are_the_first_of_a_sort_by_score_and_id(scores, random, data):
    ids = random.sample([f"{i:02d}" for i in range(60)], len(scores))
    rows = sorted((-score, id_, i) for i, (score, id_) in enumerate(zip(scores, ids, strict=True)) if score == score)
    k = data.draw(st.integers(1, len(rows)))
    places, cut, asked = cut_of(scores, ids, k)
    assert places == sorted(i for _, _, i in rows[:k])
    tied = [row for row in rows if row[0] == rows[k - 1][0]]
    assert (cut.threshold, cut.num_tied, cut.num_candidates) == (-rows[k - 1][0], len(tied), len(rows))
    assert cut.num_tied_kept == sum(row in tied for row in rows[:k])
    assert cut.boundary_id == (None if cut.num_tied_kept == cut.num_tied else rows[k - 1][1])
    assert asked == ([] if cut.boundary_id is None else sorted(i for _, _, i in tied))


def test_nothing_is_kept_of_nothing():
    assert cut_of([1.0, math.nan], ["a", "b"], 0)[0] == []
    assert cut_of([1.0], ["a"], 0)[1].to_dict()["threshold"] is None


def test_ties_go_by_the_bytes_of_the_id():
    # In UTF-16 order, which some sort by, U+10000 would come before U+FF00.
    ids = ["", "a", "a\0", "a\0\0", "aa", "b", "ab", "z", "é", "e", "\uff00", "\U00010000"]
    for k in range(1, len(ids)):
        places, cut, _ = cut_of([1.0] * len(ids), ids, k)
        assert {ids[i] for i in places} == set(sorted(ids, key=str.encode)[:k])
        assert cut.boundary_id == sorted(ids, key=str.encode)[k - 1]


def test_an_id_that_repeats_at_the_threshold_is_noticed():
    with pytest.raises(IntegrityError, match="id 'b' stands in several of 4 rows of equal score"):
        cut_of([1.0] * 4, ["a", "b", "b", "c"], 2)
    assert cut_of([1.0, 1.0, 0.0], ["b", "b", "c"], 2)[0] == [0, 1]
