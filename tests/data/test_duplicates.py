"""Repeated ids: identical rows are counted and placed, conflicting ones refused, whatever the cut into parts."""

import pickle
import tempfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config
from pipeline.errors import SourceError
from pipeline.storage.duplicates import COLUMNS, check_conflicts, check_ids, find_duplicates, hashed, hashed_rows
from pipeline.storage.filesystem import open_filesystem
from tests.storage.tables import scored_table, write_dataset

ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, cut=st.integers(0, 40), bucket_rows=st.integers(1, 50), conflicts=st.booleans())
def test_check_agrees_with_a_dictionary(rows, cut, bucket_rows, conflicts):
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
        dataset = write_dataset(*open_filesystem(folder, config.Storage()), tables)
        if bad:
            with pytest.raises(SourceError) as caught:
                check_ids(dataset, bucket_rows=bucket_rows)
            assert str(caught.value).startswith(f"{len(bad)} ids stand for rows of different content, first {bad[:10]}")
        else:
            found = check_ids(dataset, bucket_rows=bucket_rows)
            left_out = found.duplicate_positions.tolist()
            assert left_out == sorted(set(left_out))
            assert sorted(number for i, number in enumerate(ids) if i not in left_out) == sorted(contents)
            assert found.duplicate_positions.dtype == np.int64
            assert found.num_rows == len(ids)


def test_buckets_on_disk_find_what_memory_finds(local_place):
    ids = [f"id{i % 700}" for i in range(3000)]
    dataset = write_dataset(*local_place, [scored_table(ids[:1500]), scored_table(ids[1500:])])
    spilled, held = check_ids(dataset, bucket_rows=64), check_ids(dataset)
    assert spilled.duplicate_positions.tolist() == held.duplicate_positions.tolist()
    kept = sorted(set(range(3000)) - set(held.duplicate_positions.tolist()))
    assert sorted(ids[i] for i in kept) == sorted(set(ids))


def test_dataset_without_scored_rows_has_no_duplicates(local_place):
    dataset = write_dataset(*local_place, [scored_table(["a", "a"], dropped={0, 1})])
    assert check_ids(dataset).duplicate_positions.size == 0


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.integers(0, 12), min_size=1, max_size=40), seed=st.randoms(), bucket_rows=st.integers(1, 50))
def test_parts_may_be_hashed_apart_and_come_in_any_order(numbers, seed, bucket_rows):
    table = scored_table([f"id{number}" for number in numbers]).select(COLUMNS)
    whole = find_duplicates([hashed(table, 0)], len(numbers))
    hash_part = pickle.loads(pickle.dumps(hashed))
    parts = [hash_part(table.slice(start, 3), start) for start in range(0, len(numbers), 3)]
    seed.shuffle(parts)
    found = find_duplicates(parts, len(numbers), bucket_rows=bucket_rows)
    assert found.duplicate_positions.tolist() == whole.duplicate_positions.tolist()
    assert len(numbers) - found.duplicate_positions.size == len(set(numbers))
    assert found.num_conflicts == 0


def test_positions_go_on_from_the_first_one_given():
    tables = [scored_table(["a", "b"]), scored_table(["c", "b"])]
    rows = [part["position"].tolist() for part in hashed_rows((t.select(COLUMNS) for t in tables), 7)]
    assert rows == [[7, 8], [9, 10]]
    assert find_duplicates(hashed_rows(tables, 7), 4).duplicate_positions.size == 1


def test_conflicts_found_in_parts_are_named_by_id(local_place):
    tables = [scored_table(["a", "b"], digests=["1", "2"]), scored_table(["c", "b"], digests=["3", "4"])]
    dataset = write_dataset(*local_place, tables)
    found = find_duplicates(reversed([*hashed_rows(tables, 0)]), 4)
    assert (found.num_conflicts, found.first_conflicts) == (1, (1,))
    with pytest.raises(SourceError, match=r"1 ids stand for rows of different content, first \['b'\]"):
        check_conflicts(dataset, found)


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
        left_out = find_duplicates([hashed(rows.select(COLUMNS), 0)], num_rows).duplicate_positions.tolist()
        [place] = set(range(num_rows)) - set(left_out)
        return order[place]

    orders = [[(start + i) % num_rows for i in range(num_rows)] for start in range(num_rows)]
    assert len({kept(order) for order in [*orders, orders[0][::-1]]}) == 1
