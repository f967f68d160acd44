"""A shard gives exactly its rows, in order, whatever the container, the cut and the process."""

import itertools
import json
import os
import pickle
import random
import shutil

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.config import Source
from pipeline.errors import ConfigError, IntegrityError, SchemaError, SourceError
from pipeline.schema import scored_schema
from pipeline.sources import arrow_checks, blocks
from pipeline.sources.open import open_source
from pipeline.sources.rows import content_digest
from pipeline.sources.shards import plan_shards
from tests.sources import layouts as to

FS = fsspec.filesystem("file")
NO_SCORES = {"rewards": False, "policy_logps": False, "reference_logps": False}
ROWS = [{**to.pair(prompt=f"Question {n}?"), "number": n, "topic": f"t{n}"} for n in range(200)]
DIGESTS = [content_digest(row["prompt"], row["chosen"], row["rejected"]) for row in ROWS]


def opened(path, *, fs=FS, wanted=NO_SCORES, **source):
    return open_source(fs, str(path), Source(path=str(path), **source), **{**NO_SCORES, **wanted})


def read_all(reader, files, shard_rows=64):
    return pa.concat_tables([reader.read(shard) for shard in plan_shards(files, shard_rows)])


@pytest.mark.parametrize("name", to.WRITERS)
@pytest.mark.parametrize(("shard_rows", "num_rows"), [(1, 20), (7, 200), (1000, 200)])
def test_every_container_gives_the_same_rows_in_order(tmp_path, name, shard_rows, num_rows):
    to.WRITERS[name](tmp_path / name, ROWS[:num_rows])
    reader, files = opened(tmp_path, passthrough=("number", "topic"))
    table = read_all(reader, files, shard_rows)
    assert table["id"].to_pylist() == table["content_digest"].to_pylist() == DIGESTS[:num_rows]
    assert table["source_row"].to_pylist() == table["number"].to_pylist() == list(range(num_rows))
    assert set(table["source_file"].to_pylist()) == {name}
    assert table["topic"][num_rows - 1].as_py() == f"t{num_rows - 1}"
    assert table.schema == scored_schema([pa.field("number", pa.int64()), pa.field("topic", pa.string())])


@pytest.mark.parametrize("name", to.WRITERS)
def test_shards_read_in_any_order_and_process_state_are_the_same(tmp_path, name):
    to.WRITERS[name](tmp_path / name, ROWS)
    reader, files = opened(tmp_path)
    shards = plan_shards(files, 23)
    straight = [reader.read(shard) for shard in shards]
    mixed = shards * 2
    random.Random(7).shuffle(mixed)
    for shard in mixed:
        assert reader.read(shard).equals(straight[shard.index])
    for cursor in blocks._CURSORS.values():
        cursor.close()
    blocks._CURSORS.clear()
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(shards[5]).equals(straight[5])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_going_on_in_a_file_does_not_open_it_again(tmp_path, name):
    opens = []

    class Counting(LocalFileSystem):
        def _open(self, path, *args, **kwargs):
            opens.append(path)
            return super()._open(path, *args, **kwargs)

    to.WRITERS[name](tmp_path / name, ROWS)
    reader, files = opened(tmp_path, fs=Counting(skip_instance_cache=True))
    opens.clear()
    assert read_all(reader, files, 13)["id"].to_pylist() == DIGESTS
    assert len(opens) <= 6  # 16 shards; Parquet of 5 row groups is entered at each of them


def test_file_rewritten_in_place_is_never_mixed_with_the_old_one(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    to.write_jsonl_gz(path, ROWS)
    reader, files = opened(tmp_path)
    shards = plan_shards(files, 50)
    reader.read(shards[0])
    old, state = path.read_bytes(), path.stat()
    to.write_jsonl_gz(path, [{**row, "chosen": to.pair(chosen="New.")["chosen"]} for row in ROWS])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(IntegrityError, match=r"a\.jsonl\.gz was replaced"):
        reader.read(shards[1])
    path.write_bytes(old)
    assert reader.read(shards[1])["id"].to_pylist() == DIGESTS[50:100]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_what_leaves_the_content_as_it_is_changes_nothing(tmp_path, name):
    to.WRITERS[name](tmp_path / name, ROWS)
    path = tmp_path / name
    reader, files = opened(path)
    shards = plan_shards(files, 20)
    for shard, act in zip(
        shards,
        (
            lambda: path.chmod(0o600),
            path.touch,
            lambda: (tmp_path / "link").hardlink_to(path),
            lambda: shutil.copy2(path, tmp_path / "copy"),
            lambda: (tmp_path / "copy").replace(path),
        ),
        strict=False,
    ):
        act()
        assert reader.read(shard)["id"].to_pylist() == DIGESTS[shard.first_row : shard.first_row + 20]


class Swapping(LocalFileSystem):
    """A file system under which another file has the name while the reader opens it, and only then."""

    on_open = None

    def open(self, path, *args, **kwargs):
        return type(self).on_open(lambda: super(Swapping, self).open(path, *args, **kwargs))


def test_file_that_is_exchanged_for_the_time_of_opening_is_never_read(tmp_path, monkeypatch):
    path, other, aside = (tmp_path / name for name in ("a.jsonl", "other.jsonl", "aside"))
    to.write_jsonl(path, ROWS)
    to.write_jsonl(other, [{**row, "chosen": to.pair(chosen="New.")["chosen"]} for row in ROWS])
    monkeypatch.setattr(Swapping, "on_open", staticmethod(lambda do: do()))
    reader, files = opened(path, fs=Swapping(skip_instance_cache=True))
    num_swaps = [0]

    def swapped(do):
        if num_swaps[0] == 1:
            return do()
        num_swaps[0] += 1
        path.rename(aside)
        other.rename(path)
        file = do()
        path.rename(other)
        aside.rename(path)
        return file

    monkeypatch.setattr(Swapping, "on_open", staticmethod(swapped))
    assert read_all(reader, files)["id"].to_pylist() == DIGESTS
    assert num_swaps == [1]


def test_file_that_lost_rows_or_is_gone_is_refused(tmp_path):
    to.write_jsonl(tmp_path / "a.jsonl", ROWS)
    reader, files = opened(tmp_path)
    last = plan_shards(files, 50)[-1]
    to.write_jsonl(tmp_path / "a.jsonl", ROWS[:120])
    with pytest.raises(IntegrityError, match=r"a\.jsonl was replaced"):
        reader.read(last)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(SourceError, match=r"a\.jsonl is gone"):
        reader.read(last)


def test_flipped_bit_in_a_parquet_page_is_found(tmp_path):
    path = tmp_path / "a.parquet"
    plain = {"compression": "none", "use_dictionary": False, "row_group_size": 70}
    pq.write_table(pa.Table.from_pylist(ROWS), path, write_page_checksum=True, **plain)
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"Question 150")] ^= 1
    path.write_bytes(whole)
    reader, files = opened(tmp_path)
    with pytest.raises(SourceError, match=r"a\.parquet is corrupt") as caught:
        read_all(reader, files)
    assert "Question" not in str(caught.value)


def test_other_file_systems_are_read_too():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/prefs/a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))
    reader, files = opened("memory://prefs", fs=memory)
    assert read_all(reader, files)["id"].to_pylist() == DIGESTS
    memory.rm("/prefs", recursive=True)


def test_saved_dataset_is_read_with_its_own_types(tmp_path):
    datasets = pytest.importorskip("datasets")
    labels = datasets.ClassLabel(names=["a", "b"])
    saved = datasets.Dataset.from_list([{**row, "label": 1} for row in ROWS]).cast_column("label", labels)
    saved.save_to_disk(str(tmp_path / "d"), num_shards=2)
    reader, files = opened(tmp_path / "d", passthrough=("label",))
    table = read_all(reader, files)
    assert table["id"].to_pylist() == DIGESTS
    assert set(table["label"].to_pylist()) == {1}


def test_columns_of_arrow_json_type_are_parsed(tmp_path):
    datasets = pytest.importorskip("datasets", minversion="4.7")
    features = datasets.Features({name: datasets.Json() for name in ("prompt", "chosen", "rejected", "meta")})
    rows = [{**{side: row[side] for side in ("prompt", "chosen", "rejected")}, "meta": {"n": [1]}} for row in ROWS[:5]]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "d"))
    reader, files = opened(tmp_path / "d", passthrough=("meta",))
    table = read_all(reader, files)
    assert reader.format == "messages"
    assert table["id"].to_pylist() == DIGESTS[:5]
    assert json.loads(table["meta"][0].as_py()) == {"n": [1]}


def test_dictionary_text_is_read_and_passed_through_as_text(tmp_path):
    table = pa.table({"prompt": ["p"] * 3, "chosen": ["a", "b", "a"], "rejected": ["c"] * 3, "topic": ["x", "x", "y"]})
    coded = pa.table({name: table[name].combine_chunks().dictionary_encode() for name in table.column_names})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, coded.schema) as writer:
        writer.write_table(coded, max_chunksize=1)
    reader, files = opened(tmp_path, passthrough=("topic",))
    read = read_all(reader, files, 1)
    assert [turns[0]["content"] for turns in read["chosen"].to_pylist()] == ["a", "b", "a"]
    assert read["topic"].to_pylist() == ["x", "x", "y"]


def test_nested_and_timed_columns_pass_through_parquet_unchanged(tmp_path):
    when = pa.array([1, 2**40 + 1, None], pa.timestamp("ns", tz="UTC"))
    nested = pa.array([[{"k": 1}], [], None], pa.list_(pa.struct([pa.field("k", pa.int8())])))
    base = {"prompt": ["p"] * 3, "chosen": ["a"] * 3, "rejected": ["b", "c", "a"]}
    pq.write_table(pa.table({**base, "when": when, "nested": nested}), tmp_path / "a.parquet")
    reader, files = opened(tmp_path, passthrough=("when", "nested"))
    table = read_all(reader, files, 2)
    assert table["when"].combine_chunks().equals(when)
    assert table["nested"].to_pylist() == [[{"k": 1}], [], None]
    assert table["status"].to_pylist() == ["kept", "kept", "dropped"]


def test_json_lines_columns_pass_through_with_the_sampled_types(tmp_path):
    extras = [{"n": 1, "x": 1, "ok": True, "tags": ["a"]}, {"n": 2, "x": 0.5, "ok": None, "tags": {"b": 1}}, {}]
    to.write_jsonl(tmp_path / "a.jsonl", [{**ROWS[0], **extra} for extra in extras])
    reader, files = opened(tmp_path, passthrough=("n", "x", "ok", "tags"))
    table = read_all(reader, files)
    assert [str(table.schema.field(name).type) for name in ("n", "x", "ok", "tags")] == [
        "int64", "double", "bool", "string",
    ]  # fmt: skip
    assert table["x"].to_pylist() == [1.0, 0.5, None]
    assert table["tags"].to_pylist() == ['["a"]', '{"b":1}', None]


@pytest.mark.parametrize("value", ["seven", 7])
def test_id_column_gives_the_id_as_text(tmp_path, value):
    to.write_parquet(tmp_path / "a.parquet", [{**ROWS[0], "key": value}])
    reader, files = opened(tmp_path, id_column="key")
    table = read_all(reader, files)
    assert table["id"].to_pylist() == [str(value)]
    assert table["content_digest"].to_pylist() == DIGESTS[:1]


def test_dropped_row_keeps_its_id_and_place_alone(tmp_path):
    bad = {**ROWS[0], "rejected": ROWS[0]["chosen"], "key": "k1"}
    to.write_parquet(tmp_path / "a.parquet", [{**ROWS[1], "key": "k0"}, bad])
    reader, files = opened(tmp_path, id_column="key", passthrough=("topic",))
    row = read_all(reader, files).to_pylist()[1]
    assert {name: value for name, value in row.items() if value is not None} == {
        "id": "k1",
        "status": "dropped",
        "drop_stage": "source",
        "drop_reason": "identical_responses",
        "source_file": "a.parquet",
        "source_row": 1,
    }


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"passthrough": ("topic", "nope")}, r"source\.passthrough names \['nope'\]"),
        ({"passthrough": ("chosen",)}, r"source\.passthrough names \['chosen'\], which alignpot writes itself"),
        ({"id_column": "nope"}, r"source\.id_column 'nope' is not there"),
        ({"format": "strings"}, r"source\.format strings needs prompt \(text\)"),
    ],
)
def test_columns_that_do_not_fit_are_refused_before_anything_is_read(tmp_path, name, source, message):
    to.WRITERS[name](tmp_path / name, ROWS)
    with pytest.raises(SchemaError, match=message):
        opened(tmp_path, **source)


def test_id_column_of_another_type_is_refused(tmp_path):
    to.write_parquet(tmp_path / "a.parquet", [{**ROWS[0], "key": 0.5}])
    with pytest.raises(SchemaError, match="'key' is double; wanted text or whole numbers"):
        opened(tmp_path, id_column="key")


def test_unknown_format_is_refused_before_the_path_is_looked_at():
    with pytest.raises(ConfigError, match="did you mean messages"):
        opened("/nowhere", format="mesages")


def test_lines_of_which_none_decodes_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes("no JSON\n".encode("utf-16") * 3)
    with pytest.raises(SourceError, match=r"none of the first \d rows .*undecodable_text"):
        opened(tmp_path)


TEXTS = pa.array([f"{n} or so: a text too long to lie within a view" for n in range(40)])
TURNS = pa.StructArray.from_arrays([pa.array(["user"] * 40), TEXTS], names=["role", "content"])
NESTED = pa.ListArray.from_arrays(pa.array(range(41), pa.int32()), TURNS)
# A column and where the numbers stand in it that Arrow goes by: which buffer, their type.
PLACES = {
    "text": (TEXTS, 1, "<i4"),
    "large text": (TEXTS.cast(pa.large_string()), 1, "<i8"),
    "list": (NESTED, 1, "<i4"),
    "text in a list": (NESTED, 7, "<i4"),
    "dictionary": (pa.DictionaryArray.from_arrays(pa.array([*range(40)][::-1], pa.int32()), TEXTS), 1, "<i4"),
    "view": (TEXTS.cast(pa.string_view()), 1, "<i4"),
}


@pytest.mark.parametrize("container", to.ARROW)
@pytest.mark.parametrize("place", PLACES)
def test_arrow_numbers_that_lead_out_of_their_buffers_are_refused(tmp_path, container, place):
    column, buffer, dtype = PLACES[place]
    table = pa.table({"prompt": column, "chosen": ["yes"] * 40, "rejected": ["no"] * 40})
    to.write_arrow(tmp_path / "a.arrow", table.slice(0, 30), to.ARROW[container])
    whole = (tmp_path / "a.arrow").read_bytes()
    numbers = np.frombuffer(column.buffers()[buffer], dtype)[:30]
    assert whole.count(numbers.tobytes()) == 1
    for index, bad in itertools.product((1, 17), (-1, 50_000, 2**31 - 1)):
        wrong = numbers.copy()
        wrong[index] = bad
        (tmp_path / "a.arrow").write_bytes(whole.replace(numbers.tobytes(), wrong.tobytes()))
        with pytest.raises(SourceError, match=r"a\.arrow") as caught:
            read_all(*opened(tmp_path))
        assert "or so" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize("place", ["text", "text in a list", "dictionary", "view"])
def test_text_that_is_too_long_is_refused(tmp_path, monkeypatch, name, place):
    column, longest = PLACES[place][0], max(map(len, TEXTS.to_pylist()))
    table = pa.table({"prompt": column, "chosen": ["yes"] * 40, "rejected": ["no"] * 40})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        to.write_arrow(tmp_path / name, table, to.ARROW[name.removesuffix(".arrow")])
    monkeypatch.setattr(arrow_checks, "CELL_BYTES", longest)
    assert read_all(*opened(tmp_path)).num_rows == 40
    blocks._CURSORS.clear()
    monkeypatch.setattr(arrow_checks, "CELL_BYTES", longest - 1)
    with pytest.raises(SourceError, match=rf"{name} has a text of {longest} bytes in column prompt") as caught:
        read_all(*opened(tmp_path))
    assert caught.value.exit_code == 2


def write_packed_arrow(path, rows):
    to.write_arrow(path, pa.Table.from_pylist(rows), pa.ipc.new_file, compression="lz4")


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.feather", write_packed_arrow), *((name, to.WRITERS[name]) for name in to.WRITERS if "json" not in name)],
)
def test_flipped_bits_end_in_a_refusal_or_in_the_same_number_of_rows(tmp_path, name, write):
    write(tmp_path / name, ROWS[:20])
    whole = (tmp_path / name).read_bytes()
    for seed in range(40):
        data, flips = bytearray(whole), random.Random(seed)
        # Heads and footers, where sizes and places stand, are at both ends.
        for place in (flips.randrange(len(data)), flips.randrange(min(1500, len(data))) * flips.choice((1, -1))):
            data[place] ^= 1 << flips.randrange(8)
        (tmp_path / name).write_bytes(data)
        try:
            reader, files = opened(tmp_path)
            assert read_all(reader, files).num_rows == sum(file.num_rows for file in files)
        except (SourceError, SchemaError):
            pass
