"""Repeated ids: identical rows are counted and placed, conflicting ones refused, whatever the cut into parts."""

import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config
from pipeline.errors import SourceError
from pipeline.storage.duplicates import check_ids
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
