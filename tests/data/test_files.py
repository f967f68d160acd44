"""A subset loads where trainers load it, byte for byte the same however it was fed, and only when it is complete."""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config
from pipeline import schema as names
from pipeline.data import files, writers
from pipeline.data.dataset import Dataset
from pipeline.data.files import REPORT_FILE, file_shards, finish_files, with_layout, write_files
from pipeline.data.manifest import SUBSET, Manifest, find_manifest
from pipeline.data.place import Place
from pipeline.data.run import Plan, Run
from pipeline.data.sealed import sealed
from pipeline.errors import FingerprintError, IntegrityError, SchemaError, SourceError
from tests.data.tables import FINGERPRINT, scored_table

TABLE = scored_table([f"r{i}" for i in range(25)]).drop_columns([names.STATUS, names.DROP_STAGE, names.DROP_REASON])


def begun(place: Place, *, num_rows: int = 25, rows_per_file: int = 10, **changes: Any) -> Run:
    values = {"kind": SUBSET, "fingerprint": FINGERPRINT, "config": {}, "schema": TABLE.schema,
              "shards": file_shards({"train": num_rows}, rows_per_file), "formats": ("hf", "parquet")}  # fmt: skip
    return Run.claim(place, with_layout(Plan(**{**values, **changes})))


def finish(run: Run, written: list[files.File]) -> Manifest:
    return finish_files(run, written, {REPORT_FILE: sealed({"kept": 25})}, {"seconds": 1})


def write(place: Place, table: pa.Table = TABLE, cuts=(), **changes: Any) -> Manifest:
    edges = [0, *sorted(cuts), table.num_rows]
    run = begun(place, num_rows=table.num_rows, **changes)
    pieces = [table.slice(start, stop - start) for start, stop in itertools.pairwise(edges)]
    return finish(run, write_files(run, pieces))


def digests(root: str) -> dict[str, str]:
    found = (path for path in Path(root).rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_subset_loads_in_datasets_and_pyarrow(local_place):
    import datasets

    root = local_place.root
    manifest = write(local_place)
    loaded = datasets.load_from_disk(f"{root}/hf")
    assert list(loaded) == ["train"]
    from_parquet = datasets.load_dataset(
        "parquet", data_files=f"{root}/parquet/*.parquet", split="train", cache_dir=f"{root}-cache"
    )
    for each in (loaded["train"], from_parquet):
        assert each.to_list() == TABLE.to_pylist()
        assert each[3]["prompt"] == [{"role": "user", "content": "user text r3 ✓"}]
    assert pq.read_table(f"{root}/parquet").equals(TABLE)
    assert [file.num_rows for file in manifest.files] == [10, 10, 5] * 2
    assert sorted(digests(root)) == [
        "_SUCCESS.json",
        "hf/dataset_dict.json",
        *(f"hf/train/data-{i:05d}-of-00003.arrow" for i in range(3)),
        "hf/train/dataset_info.json",
        "hf/train/state.json",
        *(f"parquet/train-{i:05d}-of-00003.parquet" for i in range(3)),
        "report.json",
        "run.json",
    ]


def test_loading_and_saving_again_with_datasets_keeps_the_features(local_place, tmp_path):
    import datasets

    write(local_place)
    loaded = datasets.load_from_disk(f"{local_place.root}/hf")
    loaded.save_to_disk(str(tmp_path / "again"))
    ours = json.loads(Path(local_place.root, "hf/train/dataset_info.json").read_text())
    theirs = json.loads((tmp_path / "again/train/dataset_info.json").read_text())
    assert ours["features"] == theirs["features"]


def test_empty_subset_loads(local_place):
    import datasets

    write(local_place, TABLE.slice(0, 0))
    loaded = datasets.load_from_disk(f"{local_place.root}/hf")["train"]
    assert loaded.num_rows == 0
    assert loaded.column_names == TABLE.column_names
    assert pq.read_table(f"{local_place.root}/parquet").num_rows == 0
    assert Dataset.open(local_place, SUBSET).table().num_rows == 0


@pytest.mark.parametrize("formats", [("hf", "parquet"), ("parquet",), ("hf",)])
def test_dataset_reads_the_rows_of_every_layout(place, formats):
    write(place, formats=formats)
    dataset = Dataset.open(place, SUBSET)
    assert dataset.table().equals(TABLE)
    assert dataset.table([names.ID]).equals(TABLE.select([names.ID]))
    assert dataset.rows(8, 5).equals(TABLE.slice(8, 5))
    some = np.array([0, 9, 10, 24])
    assert pa.concat_tables(dataset.take(some, [names.ID])).equals(TABLE.select([names.ID]).take(some))
    assert [(first, part.num_kept) for first, part in dataset.split(3)] == [(0, 10), (10, 10), (20, 5)]
    assert {file.path.partition("/")[0] for file in dataset.manifest.files} == {*formats}


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(0, 25), max_size=8), batch_rows=st.sampled_from([4, 7, 4096]))
def test_bytes_do_not_depend_on_how_the_rows_came(cuts, batch_rows):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BATCH_ROWS", batch_rows)
        whole, cut = (Place.open(f"{folder}/{name}", config.Storage()) for name in ("whole", "cut"))
        write(whole)
        # Rows behind an offset, and with rubbish under the nulls, are the same rows.
        padded = pa.concat_tables([TABLE.slice(20, 5), TABLE]).combine_chunks().slice(5)
        write(cut, _with_rubbish_under_nulls(padded), cuts)
        assert digests(whole.root) == digests(cut.root)


def _with_rubbish_under_nulls(table: pa.Table) -> pa.Table:
    index = table.schema.get_field_index(names.REFERENCE_LOGP_CHOSEN)
    assert table[index].null_count == table.num_rows
    nulls = pa.py_buffer(bytes(table.num_rows // 8 + 1))
    rubbish = pa.array([float(i) for i in range(table.num_rows)]).buffers()[1]
    rebuilt = pa.Array.from_buffers(pa.float64(), table.num_rows, [nulls, rubbish])
    return table.set_column(index, table.field(index), rebuilt)


def test_written_twice_is_the_same_and_known_as_done(place):
    first = write(place)
    sizes = place.sizes()
    assert Dataset.open(place, SUBSET).manifest == first
    assert write(place) == first
    assert place.sizes() == sizes


def test_interrupted_subset_is_completed_in_the_layout_it_was_begun_in(place, tmp_path):
    run = begun(place)
    write_files(run, [TABLE.slice(0, 10)], only=0)
    assert Dataset.find(place, SUBSET) is None
    manifest = write(place, rows_per_file=7)
    whole = Place.open(str(tmp_path / "whole"), config.Storage())
    assert manifest.files == write(whole).files


def test_leftover_of_other_content_is_refused(place):
    write_files(begun(place), [TABLE.slice(0, 10)], only=0)
    left = place / "hf/train/data-00000-of-00003.arrow"
    data = bytearray(left.read())
    data[-100] ^= 1
    place.fs.pipe_file(left.root, bytes(data))
    with pytest.raises(IntegrityError, match="other content"):
        write(place)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"fingerprint": {**FINGERPRINT, "select": {"seed": 1}}}, "select"),
        ({"formats": ("hf",)}, r"layout\.formats"),
        ({"num_rows": 24}, r"layout\.num_rows: 25 there, 24 now"),
        ({"schema": TABLE.select(["id"]).schema}, r"layout\.columns\.prompt"),
    ],
)
def test_other_subset_on_the_same_path_is_refused(local_place, changes, field):
    write(local_place)
    with pytest.raises(FingerprintError, match=field):
        begun(local_place, **changes)


def test_wrong_number_of_rows_publishes_no_manifest(local_place):
    run = begun(local_place)
    with pytest.raises(IntegrityError, match="1 rows are missing from file 2"):
        write_files(run, [TABLE.slice(0, 24)])
    with pytest.raises(IntegrityError, match="more rows than were planned"):
        write_files(run, [TABLE, TABLE.slice(0, 1)])
    with pytest.raises(SchemaError):
        write_files(run, [TABLE.select(["id"])])
    with pytest.raises(IntegrityError, match="do not hold 25 rows"):
        finish(run, write_files(run, [TABLE.slice(0, 10)], only=0))
    assert find_manifest(local_place, SUBSET) is None
    with pytest.raises(SourceError, match="unfinished dataset of kind subset"):
        Dataset.open(local_place, SUBSET)


def test_lost_file_of_a_complete_subset_is_noticed(local_place):
    write(local_place)
    Path(local_place.root, "parquet/train-00001-of-00003.parquet").unlink()
    with pytest.raises(IntegrityError, match="train-00001-of-00003"):
        Dataset.find(local_place, SUBSET)


@pytest.mark.parametrize("formats", [("parquet",), ("hf",)])
def test_flipped_bit_never_changes_a_row(local_place, formats):
    write(local_place, formats=formats)
    dataset = Dataset.open(local_place, SUBSET)
    path = Path(local_place.root, dataset.manifest.files[0].path)
    sound, found = path.read_bytes(), 0
    for place in range(0, len(sound), len(sound) // 40):
        damaged = bytearray(sound)
        damaged[place] ^= 1
        path.write_bytes(bytes(damaged))
        try:
            assert dataset.table().equals(TABLE)
        except IntegrityError as error:
            found += str(path) in str(error)
    assert found > 25  # what is left are bits that no row depends on, such as statistics in page headers


def test_two_writers_at_once_agree(place):
    one, two = begun(place), begun(place)
    written = [
        [file for i in range(3) for file in write_files(run, [TABLE.slice(10 * i, 10)], only=i)] for run in (one, two)
    ]
    assert finish(one, written[0]) == finish(two, written[1])


def test_exception_while_writing_leaves_whole_files_only(local_place):
    def rows_from_a_dying_reader() -> Iterator[pa.Table]:
        yield TABLE.slice(0, 19)
        raise RuntimeError("the reader died")

    with pytest.raises(RuntimeError):
        write_files(begun(local_place), rows_from_a_dying_reader())
    assert sorted(digests(local_place.root)) == [
        "hf/train/data-00000-of-00003.arrow",
        "parquet/train-00000-of-00003.parquet",
        "run.json",
    ]


@pytest.mark.parametrize(
    "kind",
    [names.MESSAGES, pa.float64(), pa.float32(), pa.int8(), pa.bool_(), pa.string(), pa.large_string(), pa.null(),
     pa.timestamp("us"), pa.list_(pa.list_(pa.float64())), pa.large_list(pa.int64())],
    ids=str,
)  # fmt: skip
def test_columns_are_described_as_datasets_describes_them(kind):
    theirs = Features.from_arrow_schema(pa.schema([pa.field("column", kind)])).to_dict()["column"]
    assert writers._feature(kind) == theirs
