import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import IntegrityError
from pipeline.selection import ties
from pipeline.selection.ties import mth_smallest_id
from tests.selection.sources import copied

SHORT = st.text(st.sampled_from(["a", "b", "\0", "é", "\U0001f600"]), max_size=5)
NAMES = st.lists(SHORT | st.text(max_size=12), min_size=1, max_size=40, unique=True)


def asking(ids, size=6, num_parts=3):
    """Asks parts of the ids, each in arrays of some size; the last of the parts is empty where the ids are few."""
    array = pa.array(ids, pa.string())
    step = -(-len(ids) // num_parts)

    def ask(task):
        for start in range(0, num_parts * step, step):
            part = array.slice(start, step)
            yield copied(task)(part.slice(i, size) for i in range(0, len(part), size))

    return ask


@pytest.mark.parametrize("held", [2**15, 3, 1])
def test_mth_id_is_that_of_a_full_sort(held, monkeypatch):
    monkeypatch.setattr(ties, "_HELD_IDS", held)

    @given(NAMES, st.integers(1, 7), st.data())
    def check_all(ids, num_parts, data):
        m = data.draw(st.integers(1, len(ids)))
        assert mth_smallest_id(asking(ids, num_parts=num_parts), m, len(ids)) == sorted(ids)[m - 1]

    check_all()


def test_long_shared_prefixes_cost_no_passes(monkeypatch):
    monkeypatch.setattr(ties, "_HELD_IDS", 50)
    ids = [f"s3://bucket/some/long/prefix/{i:08d}" for i in range(5000)]
    passes = []

    def counted(task):
        passes.append(task)
        return asking(ids, 500)(task)

    assert mth_smallest_id(counted, 1234, 5000) == ids[1233]
    assert len(passes) <= 7


def test_order_is_that_of_the_bytes_at_every_m(monkeypatch):
    monkeypatch.setattr(ties, "_HELD_IDS", 1)
    ids = ["", "a", "a\0", "a\0\0", "aa", "b", "ab", "z", "é", "e", "\uffff", "\U00010000"]
    found = [mth_smallest_id(asking(ids), m, len(ids)) for m in range(1, len(ids) + 1)]
    assert found == sorted(ids, key=str.encode)


def test_one_id_in_many_rows_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(ties, "_HELD_IDS", 4)
    with pytest.raises(IntegrityError, match="id 'same' stands in 10 scored rows"):
        mth_smallest_id(asking(["same"] * 10), 3, 10)


def test_ids_that_go_missing_between_passes_are_noticed(monkeypatch):
    monkeypatch.setattr(ties, "_HELD_IDS", 2)
    with pytest.raises(IntegrityError, match="gave 3, an earlier one 5"):
        mth_smallest_id(asking(["a", "b", "c"]), 2, 5)
