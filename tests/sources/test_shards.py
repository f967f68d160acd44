"""The plan covers every row once, also when it was written down and read again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, IntegrityError
from pipeline.sources.probe import FileKind
from pipeline.sources.shards import SourceFile, plan_shards
from pipeline.steps.shards import SourceRows


def source_file(index, num_rows, step):
    marks = tuple((row, 1000 * row) for row in range(0, max(num_rows, 1), step))
    return SourceFile(path=f"{index}.jsonl", kind=FileKind.JSONL, num_rows=num_rows, size=1, digest="d", marks=marks)


files = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6).map(
    lambda sizes: [source_file(index, rows, step) for index, (rows, step) in enumerate(sizes)]
)


@given(files, st.integers(1, 70))
def test_shards_cover_every_row_once_in_order(some_files, shard_rows):
    shards = plan_shards(some_files, shard_rows)
    rows = [(shard.file, shard.first_row + offset) for shard in shards for offset in range(shard.num_rows)]
    assert rows == [(file.path, row) for file in some_files for row in range(file.num_rows)]
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert all(0 < shard.num_rows <= shard_rows for shard in shards)


@given(files, st.integers(1, 70))
def test_shard_starts_at_the_last_mark_before_it(some_files, shard_rows):
    marks = {file.path: file.marks for file in some_files}
    for shard in plan_shards(some_files, shard_rows):
        assert shard.mark == max(mark for mark in marks[shard.file] if mark[0] <= shard.first_row)


@given(files, st.integers(1, 70))
def test_stored_plan_gives_the_same_shards_again(some_files, shard_rows):
    rows = SourceRows(reader=None, files=some_files, shard_rows=shard_rows)
    stored = json.loads(json.dumps([*rows.plan()]))
    rows.check(stored, "run.json")
    shards = plan_shards(some_files, shard_rows)
    assert rows.shards(stored, range(len(stored))) == shards
    assert rows.shards(rows.plan(), range(len(shards))[::-1]) == shards[::-1]


@given(files.filter(lambda some: any(file.num_rows for file in some)), st.integers(1, 70), st.data())
def test_stored_plan_with_a_gap_an_overlap_or_another_file_is_refused(some_files, shard_rows, data):
    stored = [shard.to_dict() for shard in plan_shards(some_files, shard_rows)]
    place = data.draw(st.integers(0, len(stored) - 1))
    name = data.draw(st.sampled_from(["first_row", "num_rows", "file", "kind", "index", "row removed", "row repeated"]))
    if name == "row removed":
        del stored[place]
    elif name == "row repeated":
        stored.insert(place, stored[place])
    else:
        value = stored[place][name]
        stored[place][name] = f"{value}x" if isinstance(value, str) else value ^ 1 << data.draw(st.integers(0, 40))
    with pytest.raises(IntegrityError, match=r"run\.json is damaged: its shards do not hold every row"):
        SourceRows(reader=None, files=some_files, shard_rows=1).check(stored, "run.json")


def test_shard_of_no_rows_is_refused():
    with pytest.raises(ConfigError, match="shard_rows must be at least 1, got 0"):
        plan_shards([], 0)
