import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import IntegrityError
from pipeline.selection import ties
from tests.selection.sources import copied

SHORT = st.text(st.sampled_from(["a", "b", "\0", "é", "\U0001f600"]), max_size=5)
NAMES = st.lists(SHORT | st.text(max_size=12), min_size=1, max_size=40, unique=True)


def mth_smallest_id(ids, m, num_ids, size=6, num_parts=3):
    """Runs the search over parts of the ids, each in arrays of some size; the id found and how many passes it took."""
    array = pa.array(ids, pa.string())
    step = -(-len(ids) // num_parts)
    parts = [array.slice(start, step) for start in range(0, num_parts * step, step)]
    search = ties.mth_smallest_id(m, num_ids)
    question, found, num_passes = next(search), None, 0
    while found is None:
        num_passes += 1
        try:
            question = search.send([answer_of(copied(question), part, size) for part in parts])
        except StopIteration as end:
            found = end.value
    return found, num_passes


def answer_of(question, part, size):
    answer = question.empty()
    for start in range(0, len(part), size):
        answer = question.add(answer, part.slice(start, size))
    return answer


@pytest.mark.parametrize("held", [2**15, 3, 1])
def test_mth_id_is_that_of_a_full_sort(held, monkeypatch):
    monkeypatch.setattr(ties, "_HELD_IDS", held)

    @given(NAMES, st.integers(1, 7), st.data())
    def check_all(ids, num_parts, data):
        m = data.draw(st.integers(1, len(ids)))
        assert mth_smallest_id(ids, m, len(ids), num_parts=num_parts)[0] == sorted(ids)[m - 1]

    check_all()


def test_long_shared_prefixes_cost_no_passes(monkeypatch):
    monkeypatch.setattr(ties, "_HELD_IDS", 50)
    ids = [f"s3://bucket/some/long/prefix/{i:08d}" for i in range(5000)]
    found, num_passes = mth_smallest_id(ids, 1234, 5000, size=500)
    assert found == ids[1233]
    assert num_passes <= 7


def test_order_is_that_of_the_bytes_at_every_m(monkeypatch):
    monkeypatch.setattr(ties, "_HELD_IDS", 1)
    ids = ["", "a", "a\0", "a\0\0", "aa", "b", "ab", "z", "é", "e", "\uffff", "\U00010000"]
    found = [mth_smallest_id(ids, m, len(ids))[0] for m in range(1, len(ids) + 1)]
    assert found == sorted(ids, key=str.encode)


def test_one_id_in_many_rows_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(ties, "_HELD_IDS", 4)
    with pytest.raises(IntegrityError, match="id 'same' stands in 10 scored rows"):
        mth_smallest_id(["same"] * 10, 3, 10)


def test_ids_that_go_missing_between_passes_are_noticed(monkeypatch):
    monkeypatch.setattr(ties, "_HELD_IDS", 2)
    with pytest.raises(IntegrityError, match="gave 3, an earlier one 5"):
        mth_smallest_id(["a", "b", "c"], 2, 5)
