"""A subset loads where trainers load it, byte for byte the same however it was fed, and only when it is complete."""

import hashlib
import itertools
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config
from pipeline import schema as names
from pipeline.errors import FingerprintError, IntegrityError, SchemaError
from pipeline.storage import subset, subset_parts
from pipeline.storage.filesystem import list_sizes, open_filesystem
from tests.storage.tables import FINGERPRINT, scored_table

TABLE = scored_table([f"r{i}" for i in range(25)]).drop_columns([names.STATUS, names.DROP_STAGE, names.DROP_REASON])
FINAL = {"report": {"kept": 25}, "extra": {"seconds": 1}}


def spec_for(table: pa.Table, **changes) -> subset.SubsetSpec:
    values = {
        "num_rows": table.num_rows,
        "schema": table.schema,
        "formats": ("hf", "parquet"),
        "rows_per_file": 10,
        "fingerprint": FINGERPRINT,
        "config": {},
        "version": "0.1.0",
    }
    return subset.SubsetSpec(**{**values, **changes})


def write(place, table: pa.Table = TABLE, cuts=(), **changes) -> subset.SubsetManifest:
    edges = [0, *sorted(cuts), table.num_rows]
    with subset.SubsetWriter(*place, spec_for(table, **changes)) as writer:
        for start, stop in itertools.pairwise(edges):
            writer.write(table.slice(start, stop - start))
        return writer.finish(**FINAL)


def digests(root: str) -> dict[str, str]:
    files = (path for path in Path(root).rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_subset_loads_in_datasets_and_pyarrow(local_place):
    import datasets

    root = local_place[1]
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
    assert [file["num_rows"] for file in manifest.files] == [10, 10, 5] * 2
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
    loaded = datasets.load_from_disk(f"{local_place[1]}/hf")
    loaded.save_to_disk(str(tmp_path / "again"))
    ours = json.loads(Path(local_place[1], "hf/train/dataset_info.json").read_text())
    theirs = json.loads((tmp_path / "again/train/dataset_info.json").read_text())
    assert ours["features"] == theirs["features"]


def test_empty_subset_loads(local_place):
    import datasets

    write(local_place, TABLE.slice(0, 0))
    loaded = datasets.load_from_disk(f"{local_place[1]}/hf")["train"]
    assert loaded.num_rows == 0
    assert loaded.column_names == TABLE.column_names
    assert pq.read_table(f"{local_place[1]}/parquet").num_rows == 0


def test_one_format_alone_is_written(local_place):
    write(local_place, formats=("parquet",))
    assert not Path(local_place[1], "hf").exists()


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(0, 25), max_size=8), batch_rows=st.sampled_from([4, 7, 4096]))
def test_bytes_do_not_depend_on_how_the_rows_came(cuts, batch_rows):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(subset_parts, "BATCH_ROWS", batch_rows)
        whole, cut = (open_filesystem(f"{folder}/{name}", config.Storage()) for name in ("whole", "cut"))
        write(whole)
        # Rows behind an offset, and with rubbish under the nulls, are the same rows.
        padded = pa.concat_tables([TABLE.slice(20, 5), TABLE]).combine_chunks().slice(5)
        write(cut, _with_rubbish_under_nulls(padded), cuts)
        assert digests(whole[1]) == digests(cut[1])


def _with_rubbish_under_nulls(table: pa.Table) -> pa.Table:
    index = table.schema.get_field_index(names.REFERENCE_LOGP_CHOSEN)
    assert table[index].null_count == table.num_rows
    nulls = pa.py_buffer(bytes(table.num_rows // 8 + 1))
    rubbish = pa.array([float(i) for i in range(table.num_rows)]).buffers()[1]
    rebuilt = pa.Array.from_buffers(pa.float64(), table.num_rows, [nulls, rubbish])
    return table.set_column(index, table.field(index), rebuilt)


def test_written_twice_is_the_same_and_known_as_done(place):
    fs, root = place
    first = write(place)
    sizes = list_sizes(fs, root)
    with subset.SubsetWriter(fs, root, spec_for(TABLE)) as writer:
        assert writer.done == first
    assert write(place) == first
    assert list_sizes(fs, root) == sizes
    assert subset.load_subset_manifest(fs, root) == first


def test_interrupted_subset_is_completed_in_the_layout_it_was_begun_in(place, tmp_path):
    fs, root = place
    with subset.SubsetWriter(fs, root, spec_for(TABLE)) as writer:
        writer.write(TABLE.slice(0, 17))
    assert subset.load_subset_manifest(fs, root) is None
    manifest = write(place, rows_per_file=7)
    whole = open_filesystem(str(tmp_path / "whole"), config.Storage())
    assert manifest.files == write(whole).files


def test_leftover_of_other_content_is_refused(place):
    fs, root = place
    with subset.SubsetWriter(fs, root, spec_for(TABLE)) as writer:
        writer.write(TABLE.slice(0, 10))
    path = f"{root}/hf/train/data-00000-of-00003.arrow"
    data = bytearray(fs.cat_file(path))
    data[-100] ^= 1
    fs.pipe_file(path, bytes(data))
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
        subset.SubsetWriter(*local_place, spec_for(TABLE, **changes))


def test_wrong_number_of_rows_publishes_no_manifest(local_place):
    with subset.SubsetWriter(*local_place, spec_for(TABLE)) as writer:
        writer.write(TABLE.slice(0, 24))
        with pytest.raises(IntegrityError, match="24 rows for a subset of 25"):
            writer.finish(**FINAL)
        with pytest.raises(IntegrityError, match="at least 26"):
            writer.write(TABLE.slice(0, 2))
        with pytest.raises(SchemaError):
            writer.write(TABLE.select(["id"]))
    assert subset.load_subset_manifest(*local_place) is None


def test_lost_file_of_a_complete_subset_is_noticed(local_place):
    write(local_place)
    Path(local_place[1], "parquet/train-00001-of-00003.parquet").unlink()
    with pytest.raises(IntegrityError, match="train-00001-of-00003"):
        subset.SubsetWriter(*local_place, spec_for(TABLE))


def test_two_writers_at_once_agree(place):
    with subset.SubsetWriter(*place, spec_for(TABLE)) as one, subset.SubsetWriter(*place, spec_for(TABLE)) as two:
        for start in range(0, 25, 5):
            one.write(TABLE.slice(start, 5))
            two.write(TABLE.slice(start, 5))
        assert one.finish(**FINAL) == two.finish(**FINAL)


def test_exception_while_writing_leaves_whole_files_only(local_place):
    def rows_from_a_dying_reader():
        yield TABLE.slice(0, 19)
        raise RuntimeError("the reader died")

    def write_all() -> None:
        with subset.SubsetWriter(*local_place, spec_for(TABLE)) as writer:
            for table in rows_from_a_dying_reader():
                writer.write(table)

    with pytest.raises(RuntimeError):
        write_all()
    assert sorted(digests(local_place[1])) == [
        "hf/train/data-00000-of-00003.arrow",
        "parquet/train-00000-of-00003.parquet",
        "run.json",
    ]
