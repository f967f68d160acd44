"""The plan covers every row once, and a shard survives being written down."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.sources.files import SourceFile
from pipeline.sources.probe import FileKind
from pipeline.sources.shards import Shard, plan_shards


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
def test_shard_survives_json(some_files, shard_rows):
    for shard in plan_shards(some_files, shard_rows):
        assert Shard.from_dict(json.loads(json.dumps(shard.to_dict()))) == shard


def test_shard_of_no_rows_is_refused():
    with pytest.raises(ConfigError, match="shard_rows must be at least 1, got 0"):
        plan_shards([], 0)
