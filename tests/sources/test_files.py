"""Pre-flight: every container gives its rows, and every bad file is named at once."""

import gzip
import itertools
import json
import struct
import time
from typing import ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import SourceError, TemporaryError
from pipeline.faults import storage_errors
from pipeline.sources import records
from pipeline.sources.blocks import read_rows
from pipeline.sources.files import scan_files
from pipeline.sources.saved import saved_files
from pipeline.sources.shards import plan_shards
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
    to.write_arrow_stream(tmp_path / "f.arrow", ROWS)
    stream = (tmp_path / "f.arrow").read_bytes()
    (tmp_path / "f.arrow").write_bytes(stream[: len(stream) // 2])
    (tmp_path / "g.arrow").write_bytes(stream[:-8])
    (tmp_path / "h.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 1000)[:-10])
    (tmp_path / "i.json").write_text(json.dumps(ROWS)[:-1])
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
    assert set(told) == {f"{n}.{x}" for n, x in zip("bcfghijklm", EXTENSIONS, strict=True)}
    assert "0 bytes" in told["b.parquet"]
    assert "cut short" in told["g.arrow"]
    assert "JSON array has no end" in told["i.json"]
    assert "while a.parquet is parquet" in told["j.jsonl"]
    assert "same name" in told["m.parquet"]
    assert caught.value.exit_code == 2


EXTENSIONS = ["parquet", "parquet", "arrow", "arrow", "jsonl.gz", "json", "jsonl", "feather"]
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
    (tmp_path / "prefs.xlsx").write_text("a,b")
    with pytest.raises(SourceError, match=r"holds no data file.*\.parquet.*It has prefs.xlsx"):
        scan(tmp_path)
    with pytest.raises(SourceError, match="is no data file"):
        scan(tmp_path / "prefs.xlsx")


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


def test_saved_dataset_dict_is_read_by_its_training_or_only_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"test": saved, "train": saved.select(range(7))}).save_to_disk(str(tmp_path / "two"))
    datasets.DatasetDict({"only": saved}).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"good": saved, "bad": saved}).save_to_disk(str(tmp_path / "none"))
    assert [(file.path, file.num_rows) for file in scan(tmp_path / "two").files] == [
        ("train/data-00000-of-00001.arrow", 7)
    ]
    assert scan(tmp_path / "one").num_rows == scan(tmp_path / "two" / "test").num_rows == 100
    with pytest.raises(SourceError, match=r"It has good \(1 file\), bad \(1 file\).*`source: \{split: good\}`"):
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
    for name, text in itertools.product(("state.json", "dataset_dict.json"), ("{", "[" * 100_000, '{"a":' * 100_000)):
        (tmp_path / name).write_text(text)
        with pytest.raises(SourceError, match=f"{name} is no JSON"):
            scan(tmp_path)
    (tmp_path / "dataset_dict.json").unlink()
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(SourceError, match="lists no data files"):
        scan(tmp_path)


def with_claim(path, old, new):
    """Puts another number into the footer of a Parquet file, wherever it stands there."""
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - size : -8].replace(varint(2 * old), varint(2 * new))
    path.write_bytes(data[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def varint(number):
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


@pytest.mark.parametrize("claim", [12_346, 10**6, 10**8, 10**11, 2**62])
def test_parquet_footer_that_claims_more_rows_than_its_pages_hold_is_refused(tmp_path, claim):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({name: ["x"] * 12_345 for name in ("prompt", "chosen", "rejected")}), path)
    assert scan(tmp_path).num_rows == 12_345
    with_claim(path, 12_345, claim)
    with pytest.raises(SourceError, match=r"a\.parquet claims"):
        scan(tmp_path)


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zstd", "use_dictionary": False}, {"data_page_version": "2.0"}]
)
def test_a_million_equal_rows_in_a_small_parquet_file_are_no_false_claim(tmp_path, options):
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int8)), ["x" * 30]).cast(pa.string())
    pq.write_table(pa.table({"prompt": text}), tmp_path / "a.parquet", **options)
    assert scan(tmp_path).num_rows == 10**6
    assert (tmp_path / "a.parquet").stat().st_size < 50_000


def patched(path, *patches):
    data = path.read_bytes()
    for old, new in patches:
        assert old in data
        data = data.replace(old, new)
    path.write_bytes(data)


@pytest.mark.parametrize("container", to.ARROW)
@pytest.mark.parametrize("rows", [-1, 10**8, 10**11])
@pytest.mark.parametrize("values", [pa.nulls(29), pa.array(["x"] * 29), pa.array([[]] * 29, pa.list_(pa.null()))])
def test_arrow_batch_that_claims_more_rows_than_it_has_room_for_is_refused(tmp_path, container, rows, values):
    to.write_arrow(tmp_path / "a.arrow", pa.table({"prompt": values}), to.ARROW[container])
    patched(tmp_path / "a.arrow", (struct.pack("<q", 29), struct.pack("<q", rows)))
    with pytest.raises(SourceError, match=r"a\.arrow is damaged"):
        scan(tmp_path)


def test_arrow_footer_that_points_twice_to_a_batch_or_outside_is_refused(tmp_path):
    path, table = tmp_path / "a.arrow", pa.table({"prompt": ["x"] * 9})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        places = []
        for _ in range(3):
            places.append(struct.pack("<q", sink.tell()))
            writer.write_table(table)
    whole = path.read_bytes()
    for wrong in (places[0], struct.pack("<q", len(whole)), struct.pack("<q", -8), struct.pack("<q", 2**62)):
        path.write_bytes(whole)
        patched(path, (places[1], wrong))
        with pytest.raises(SourceError, match=r"a\.arrow is damaged \(its footer points"):
            scan(tmp_path)


def test_name_in_a_schema_that_is_no_utf8_is_refused(tmp_path):
    for name, write in to.WRITERS.items():
        if "arrow" in name:
            write(tmp_path / name, [to.pair()])
            patched(tmp_path / name, (b"content", b"\xff\xfentent"))
    with pytest.raises(SourceError, match=r"2 of 2 data file.*\n  file.arrow cannot be read.*\n  stream.arrow cannot"):
        scan(tmp_path)


BOMB = 270 << 20  # bytes, of one letter


def packed(path, codec, piece):
    with pa.CompressedOutputStream(str(path), codec) as stream:
        for _ in range(BOMB >> 20):
            stream.write(piece * ((1 << 20) // len(piece)))


def one_cell():
    offsets = pa.py_buffer(struct.pack("<2i", 0, BOMB))
    return pa.table({"prompt": pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(bytes(BOMB))])})


BOMBS = {
    "line.jsonl.zst": lambda path: packed(path, "zstd", b"x"),
    "blank.jsonl.gz": lambda path: path.write_bytes(gzip.compress(b"\n" * (BOMB // 15)) * 15),
    "rows.jsonl.zst": lambda path: packed(path, "zstd", b'{"prompt": "' + b"x" * 1010 + b'"}\n'),
    "cell.parquet": lambda path: pq.write_table(one_cell(), path, compression="zstd", write_statistics=False),
    "stream.arrow": lambda path: to.write_arrow(path, one_cell(), pa.ipc.new_stream, compression="zstd"),
    "file.arrow": lambda path: to.write_arrow(path, one_cell(), pa.ipc.new_file, compression="lz4"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_decompression_bomb_is_refused_before_it_fills_memory(tmp_path, name):
    BOMBS[name](tmp_path / name)
    before = pa.total_allocated_bytes()
    with pytest.raises(SourceError, match=rf"{name} (is a decompression bomb|has a line of more than 134217728 bytes)"):
        scan(tmp_path)
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_line_that_is_too_long_is_refused_with_its_row(tmp_path):
    to.write_jsonl(tmp_path / "a.jsonl", ROWS)
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.truncate(200 << 20)
    with pytest.raises(SourceError, match=r"a\.jsonl has a line of more than 134217728 bytes in row 100;"):
        scan(tmp_path)


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b" \r\n\t\n", b"\n" * (3 << 20)])
def test_endless_element_of_a_json_array_is_refused(tmp_path, before, monkeypatch):
    monkeypatch.setattr(records, "CELL_BYTES", 4 << 20)
    with (tmp_path / "a.json").open("wb") as file:
        file.write(before + b"[")
        file.truncate(100 << 30)  # to read on would fill memory
    with pytest.raises(SourceError, match=r"a\.json has an element of more than 4194304 bytes in row 0"):
        scan(tmp_path)


def test_blank_lines_are_skipped_without_delay(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n" * (32 << 20) + b" \r\n{}\n\t\n")
    started = time.process_time()
    assert scan(tmp_path).num_rows == 1
    assert time.process_time() - started < 2


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
    shard = plan_shards(scan(tmp_path).files, 1)[0]
    for act in (
        lambda: scan_files(fs, str(tmp_path)),
        lambda: saved_files(fs, str(tmp_path), "state.json"),
        lambda: read_rows(fs, str(tmp_path), shard, ()),
    ):
        with pytest.raises(TemporaryError, match="busy"), storage_errors("s3://bucket/x"):
            act()
