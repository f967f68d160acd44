"""Pre-flight: every container gives its rows, and every bad file is named at once."""

import gzip
import json
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import SourceError, TemporaryError
from pipeline.faults import storage_errors
from pipeline.sources.blocks import Span, read_span
from pipeline.sources.files import scan_files
from pipeline.sources.hf_folder import dataset_files
from pipeline.sources.probe import FileKind
from tests.sources import layouts as to

FS = fsspec.filesystem("file")
ROWS = [to.as_strings(to.pair(prompt=f"Question {n}?")) for n in range(100)]


def scan(path):
    return scan_files(FS, str(path))


@pytest.mark.parametrize("name", to.WRITERS)
def test_container_is_counted_and_named_by_its_content(tmp_path, name):
    to.WRITERS[name](tmp_path / name, ROWS)
    file = scan(tmp_path).files[0]
    assert (file.path, file.num_rows, file.size) == (name, 100, (tmp_path / name).stat().st_size)
    to.WRITERS[name](tmp_path / name, [{**row, "chosen": "Other."} for row in ROWS])
    assert scan(tmp_path).files[0].digest != file.digest


def test_scan_of_one_file_is_relative_to_its_folder(tmp_path):
    to.write_jsonl(tmp_path / "a.jsonl", ROWS)
    to.write_jsonl(tmp_path / "b.jsonl", ROWS)
    found = scan(tmp_path / "b.jsonl")
    assert (found.root, [file.path for file in found.files]) == (str(tmp_path), ["b.jsonl"])


def test_files_are_ordered_by_path_and_others_ignored(tmp_path):
    for folder in ("b", "a/deep", ".cache", "_tmp"):
        (tmp_path / folder).mkdir(parents=True)
        to.write_jsonl(tmp_path / folder / "x.jsonl", ROWS)
    for other in ("README.md", ".hidden.jsonl", "_SUCCESS.json", "run.json", "dataset_infos.json"):
        (tmp_path / other).write_text("not data")
    found = scan(tmp_path)
    assert [file.path for file in found.files] == ["a/deep/x.jsonl", "b/x.jsonl"]
    assert found.num_rows == 200


def test_other_file_systems_are_scanned_too():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/prefs/a.jsonl", b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    found = scan_files(memory, "memory://prefs")
    assert [file.num_rows for file in found.files] == [1]
    assert found.files[0].digest
    memory.rm("/prefs", recursive=True)


def test_every_bad_file_is_named_at_once(tmp_path):
    to.write_parquet(tmp_path / "a.parquet", ROWS)
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(b"")
    (tmp_path / "c.parquet").write_bytes(whole[:-40])
    to.write_parquet(tmp_path / "d.parquet", [{**row, "extra": 1} for row in ROWS])
    to.write_parquet(tmp_path / "e.parquet", [{**row, "chosen": 1} for row in ROWS])
    to.write_arrow_stream(tmp_path / "f.arrow", ROWS)
    stream = (tmp_path / "f.arrow").read_bytes()
    (tmp_path / "f.arrow").write_bytes(stream[: len(stream) // 2])
    (tmp_path / "g.arrow").write_bytes(stream[:-8])
    (tmp_path / "h.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 1000)[:-10])
    (tmp_path / "i.json").write_text(json.dumps(ROWS))
    to.write_jsonl(tmp_path / "j.jsonl", ROWS)
    (tmp_path / "k.feather").write_bytes(b"FEA1 is the first version")
    to.write_arrow_file(tmp_path / "l.arrow", ROWS)
    (tmp_path / "l.arrow").write_bytes((tmp_path / "l.arrow").read_bytes()[:-30])
    twice = pa.table([["x"], ["y"]], names=["chosen", "chosen"])
    pq.write_table(twice, tmp_path / "m.parquet")
    with pytest.raises(SourceError) as caught:
        scan(tmp_path)
    text = str(caught.value)
    told = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert set(told) == {f"{n}.{x}" for n, x in zip("bcdefghijklm", EXTENSIONS, strict=True)}
    assert "0 bytes" in told["b.parquet"]
    assert "adds extra" in told["d.parquet"]
    assert "chosen is int64, not string" in told["e.parquet"]
    assert "cut short" in told["g.arrow"]
    assert "JSON array" in told["i.json"]
    assert "while a.parquet is parquet" in told["j.jsonl"]
    assert "same name" in told["m.parquet"]
    assert caught.value.exit_code == 2


EXTENSIONS = ["parquet", "parquet", "parquet", "parquet", "arrow", "arrow", "jsonl.gz", "json", "jsonl", "feather"]
EXTENSIONS += ["arrow", "parquet"]


def test_column_without_values_and_wider_offsets_are_no_drift(tmp_path):
    table = pa.Table.from_pylist([{**row, "note": "x"} for row in ROWS])
    pq.write_table(table.set_column(3, "note", pa.nulls(100)), tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet")
    large = pa.schema([pa.field(name, pa.large_string()) for name in table.schema.names])
    pq.write_table(table.cast(large), tmp_path / "c.parquet")
    assert scan(tmp_path).schema.field("note").type == pa.string()


@pytest.mark.parametrize("rows", [[], [b"", b"  "]])
def test_source_without_rows_is_refused(tmp_path, rows):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*rows, b"\n"]))
    with pytest.raises(SourceError, match="0 rows in 1 file"):
        scan(tmp_path)


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        scan(tmp_path / "nowhere")


def test_folder_without_data_names_what_it_has(tmp_path):
    (tmp_path / "prefs.csv").write_text("a,b")
    with pytest.raises(SourceError, match=r"holds no data file.*\.parquet.*It has prefs.csv"):
        scan(tmp_path)
    with pytest.raises(SourceError, match="is no data file"):
        scan(tmp_path / "prefs.csv")


def test_saved_dataset_is_read_by_its_own_list_of_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "d"), num_shards=3)
    (tmp_path / "d" / "cache-1.arrow").write_bytes(b"a leftover")
    found = scan(tmp_path / "d")
    assert [file.path for file in found.files] == [f"data-0000{n}-of-00003.arrow" for n in range(3)]
    assert found.num_rows == 100
    (tmp_path / "d" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(SourceError, match=r"data-00001-of-00003.arrow is missing"):
        scan(tmp_path / "d")


def test_saved_dataset_dict_is_read_by_its_train_or_only_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"test": saved, "train": saved.select(range(7))}).save_to_disk(str(tmp_path / "two"))
    datasets.DatasetDict({"only": saved}).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"good": saved, "bad": saved}).save_to_disk(str(tmp_path / "none"))
    assert [(file.path, file.num_rows) for file in scan(tmp_path / "two").files] == [
        ("train/data-00000-of-00001.arrow", 7)
    ]
    assert scan(tmp_path / "one").num_rows == scan(tmp_path / "two" / "test").num_rows == 100
    with pytest.raises(SourceError, match=r"splits \['good', 'bad'\].*the folder of one split, such as .*none/good"):
        scan(tmp_path / "none")


def test_folder_above_saved_datasets_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "hf"))
    saved.save_to_disk(str(tmp_path / "more" / "single"))
    (tmp_path / "parquet").mkdir()
    to.write_parquet(tmp_path / "parquet" / "a.parquet", ROWS)
    with pytest.raises(SourceError, match=r"but holds some: hf, more/single\. Give source\.path one"):
        scan(tmp_path)
    assert scan(tmp_path / "hf").num_rows == scan(tmp_path / "parquet").num_rows == 100


def test_damaged_description_of_a_saved_dataset_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(SourceError, match=r"state.json is no JSON"):
        scan(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(SourceError, match="lists no data files"):
        scan(tmp_path)


class Failing(LocalFileSystem):
    """A file system whose files break off when they are read, or cannot be opened."""

    error: ClassVar[OSError]
    on_open: ClassVar[bool]

    def _open(self, path, *args, **kwargs):
        if self.on_open:
            raise self.error
        file = super()._open(path, *args, **kwargs)

        def read(*_args):
            raise self.error

        file.read = read
        return file


@pytest.mark.parametrize("on_open", [True, False])
@pytest.mark.parametrize("error", [PermissionError(13, "denied"), TimeoutError("no answer"), OSError(5, "reset")])
@pytest.mark.parametrize("name", to.WRITERS)
def test_storage_errors_are_not_taken_for_bad_files(tmp_path, monkeypatch, name, error, on_open):
    to.WRITERS[name](tmp_path / name, ROWS)
    monkeypatch.setattr(Failing, "error", error, raising=False)
    monkeypatch.setattr(Failing, "on_open", on_open, raising=False)
    with pytest.raises(type(error)):
        scan_files(Failing(skip_instance_cache=True), str(tmp_path))


class Throttled(LocalFileSystem):
    """A file system that reports throttling as s3fs does: FileNotFoundError with the server's answer as its cause."""

    def info(self, path, **kwargs):
        raise FileNotFoundError(path) from throttling()

    def cat_file(self, path, start=None, end=None, **kwargs):
        raise FileNotFoundError(path) from throttling()

    def ukey(self, path):
        raise FileNotFoundError(path) from throttling()


def throttling():
    answer = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
    return ClientError(answer, "HeadObject")


def test_throttling_is_not_taken_for_a_missing_file(tmp_path):
    fs = Throttled(skip_instance_cache=True)
    to.write_jsonl(tmp_path / "a.jsonl", ROWS)
    span = Span(path=str(tmp_path / "a.jsonl"), kind=FileKind.JSONL, first_row=0, num_rows=1, mark=(0, 0), columns=())
    for act in (
        lambda: scan_files(fs, str(tmp_path)),
        lambda: dataset_files(fs, str(tmp_path), ["state.json"], "x"),
        lambda: read_span(fs, span, shown="a.jsonl"),
    ):
        with pytest.raises(TemporaryError, match="busy"), storage_errors("s3://bucket/x"):
            act()
