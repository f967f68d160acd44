"""Repeated ids: identical rows are counted and placed, conflicting ones refused, whatever the cut into parts."""

import tempfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import SourceError
from pipeline.metrics.columns import single_array
from pipeline.metrics.ids import id_hashes
from pipeline.selection.duplicates import find_repeats
from tests.data.tables import scored_table, write_dataset

ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1), st.booleans()), min_size=1, max_size=40)


def repeats(dataset: Dataset) -> list[int]:
    hashes = [id_hashes(single_array(table, "id")) for table in dataset.tables(["id"])]
    found = find_repeats(dataset, np.concatenate([np.zeros(0, np.uint64), *hashes]))
    assert found.dtype == np.int64
    return found.tolist()


class InMemory:
    """Rows of a table by position."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.schema = table.schema

    def take(self, positions, columns):
        for position in positions.tolist():
            yield self.table.select(list(columns)).slice(position, 1)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, cut=st.integers(0, 40), conflicts=st.booleans())
def test_repeats_agree_with_a_dictionary(rows, cut, conflicts):
    if not conflicts:
        rows = [(number, 0, keep) for number, _, keep in rows]
    tables = [
        scored_table(
            [f"id{number}" for number, _, _ in part],
            digests=[f"content-{number}-{content}" for number, content, _ in part],
            dropped={i for i, (_, _, keep) in enumerate(part) if not keep},
        )
        for part in (rows[:cut], rows[cut:])
        if part
    ]
    contents: dict[int, set[int]] = {}
    ids = [number for number, _, keep in rows if keep]
    for number, content, keep in rows:
        if keep:
            contents.setdefault(number, set()).add(content)
    bad = [f"id{number}" for number, seen in contents.items() if len(seen) > 1]
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Place.open(folder, config.Storage()), tables)
        if bad:
            with pytest.raises(SourceError) as caught:
                repeats(dataset)
            assert str(caught.value).startswith(f"{len(bad)} ids stand for rows of different content, first {bad[:10]}")
        else:
            left_out = repeats(dataset)
            assert left_out == sorted(set(left_out))
            assert sorted(number for i, number in enumerate(ids) if i not in left_out) == sorted(contents)


def test_dataset_without_kept_rows_has_no_duplicates(tmp_path):
    place = Place.open(str(tmp_path / "scored"), config.Storage())
    assert repeats(write_dataset(place, [scored_table(["a", "a"], dropped={0, 1})])) == []


def test_ids_of_equal_hashes_are_told_apart():
    table = scored_table(["a", "b", "a", "c"])
    assert find_repeats(InMemory(table), np.zeros(4, np.uint64)).tolist() in ([0], [2])


SCORINGS = {
    "rewards": {"reward_chosen": [float(i) for i in range(8)], "reward_rejected": [0.0] * 8},
    "null_and_zero": {"reward_chosen": [None, 0.0], "reward_rejected": [None, 0.0]},
    "tokens": {"num_tokens_chosen": [3, 4, 5], "num_tokens_rejected": [7, 7, 7]},
    "candidates": {"rewards_all": [[1.0, 2.0], [1.0, 3.0], None, [1.0]]},
}


@pytest.mark.parametrize("columns", SCORINGS.values(), ids=SCORINGS)
def test_which_of_two_scorings_is_kept_does_not_depend_on_their_order(columns):
    num_rows = len(next(iter(columns.values())))
    table = scored_table(["a"] * num_rows, columns=columns).take([0] * num_rows)
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))

    def kept(order):
        rows = table.take(order)
        left_out = find_repeats(InMemory(rows), id_hashes(single_array(rows, "id"))).tolist()
        [place] = set(range(num_rows)) - set(left_out)
        return order[place]

    orders = [[(start + i) % num_rows for i in range(num_rows)] for start in range(num_rows)]
    assert len({kept(order) for order in [*orders, orders[0][::-1]]}) == 1
