"""Files of one source that differ: harmless differences are read, others refused with both files named."""

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Source
from pipeline.errors import SchemaError, SourceError
from pipeline.sources.files import scan_files
from pipeline.sources.inspect import inspect_source
from pipeline.sources.open import open_source
from pipeline.sources.shards import plan_shards
from tests.sources import layouts as to

FS = fsspec.filesystem("file")
PAIRS = [to.pair(prompt=f"Question {n}?") for n in range(8)]


def scored(p, **more):
    return {**to.as_strings(p), "score_chosen": 2, "score_rejected": 1, **more}


def opened(path, **source):
    source = {"path": "x", **source}
    return open_source(FS, str(path), Source(**source), rewards=True, policy_logps=False, reference_logps=False)


def read(path, **source):
    reader, files = opened(path, **source)
    return pa.concat_tables(reader.read(shard) for shard in plan_shards(files, 3)).replace_schema_metadata(None)


def named(p, **more):
    """A message pair whose turns have keys in another order, and more of them."""
    return {side: [{"content": t["content"], **more, "role": t["role"]} for t in turns] for side, turns in p.items()}


SCORES = {"score_chosen": 2, "score_rejected": 1}
HARMLESS = {
    "floats": (scored, lambda p: scored(p, score_chosen=2.0, score_rejected=1.0)),
    "extra column": (scored, lambda p: scored(p, judge_note="ok")),
    "extra column of another type": (lambda p: scored(p, note=1), lambda p: scored(p, note="x")),
    "order of columns": (scored, lambda p: dict(reversed(scored(p).items()))),
    "optional column": (lambda p: scored(p, system=None), scored),
    "optional column in one": (lambda p: scored(p, system="Be kind."), scored),
    "order of fields": (lambda p: {**p, **SCORES}, lambda p: {**named(p), **SCORES}),
    "null field": (lambda p: {**p, **SCORES}, lambda p: {**named(p, name=None, tool_calls=None), **SCORES}),
    "numbers and texts as ids": (lambda p: scored(p, key=len(str(p))), lambda p: scored(p, key="x")),
    "other form of messages": (
        lambda p: {**p, **SCORES},
        lambda p: {**{side: [{"from": t["role"], "value": t["content"]} for t in p[side]] for side in p}, **SCORES},
    ),
}


@pytest.mark.parametrize("container", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_differences_are_read(tmp_path, kind, container):
    one, other = HARMLESS[kind]
    for name, write, pairs in (("a", one, PAIRS[:4]), ("b", other, PAIRS[4:])):
        to.WRITERS[f"a.{container}"](tmp_path / f"{name}.{container}", [write(p) for p in pairs])
    table = read(tmp_path, id_column="key" if "ids" in kind else None)
    assert table.column("status").to_pylist() == ["kept"] * 8
    assert table.column("reward_chosen").to_pylist() == [2.0] * 8
    users = [[turn for turn in prompt if turn["role"] == "user"] for prompt in table.column("prompt").to_pylist()]
    assert users == [p["prompt"] for p in PAIRS]
    assert not inspect_source(FS, str(tmp_path)).problems


HARMFUL = {
    "messages": (
        lambda p: {**to.as_messages(p), **SCORES},
        "b.* lacks prompt .*; a.* has it|chosen is turns; in a.* text",
    ),
    "name": (lambda p: {**{k: v for k, v in scored(p).items() if k != "chosen"}, "chosen_answer": "x"}, "lacks chosen"),
    "no prompt": (lambda p: {k: v for k, v in scored(p).items() if k != "prompt"}, r"b.* lacks prompt .*; a.* has it"),
    "no scores": (to.as_strings, r"b.* lacks score_chosen, score_rejected; a.* has it"),
    "type of scores": (lambda p: scored(p, score_chosen=[2.0]), r"b.*: score_chosen is numbers; in a.* it is number"),
}


@pytest.mark.parametrize("container", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", HARMFUL)
def test_what_changes_the_meaning_is_refused_with_both_files(tmp_path, kind, container):
    other, message = HARMFUL[kind]
    to.WRITERS[f"a.{container}"](tmp_path / f"a.{container}", [scored(p) for p in PAIRS])
    to.WRITERS[f"a.{container}"](tmp_path / f"b.{container}", [other(p) for p in PAIRS])
    with pytest.raises(SourceError, match=message) as error:
        opened(tmp_path)
    assert "each kind in a folder of its own" in str(error.value)
    assert any("differ" in problem for problem in inspect_source(FS, str(tmp_path)).problems)


def test_passed_columns_get_a_common_type_or_are_refused(tmp_path):
    for name, note, day in (("a", 1, None), ("b", 2.5, "monday")):
        to.write_parquet(tmp_path / f"{name}.parquet", [scored(p, note=note, day=day) for p in PAIRS[:2]])
    to.write_parquet(tmp_path / "c.parquet", [scored(p) for p in PAIRS[:2]])
    table = read(tmp_path, passthrough=("note", "day"))
    assert table.column("note").to_pylist() == [1.0, 1.0, 2.5, 2.5, None, None]
    assert table.column("day").to_pylist() == [None, None, "monday", "monday", None, None]
    to.write_parquet(tmp_path / "d.parquet", [scored(p, note="much") for p in PAIRS])
    assert read(tmp_path).num_rows == 14
    with pytest.raises(SourceError, match=r"d\.parquet: note, which is passed through, is string; in a\.parquet"):
        opened(tmp_path, passthrough=("note",))


@pytest.mark.parametrize("container", ["jsonl", "parquet"])
def test_folders_named_after_a_column_give_it(tmp_path, container):
    for number, folder in enumerate(("lang=de/year=2024", "lang=a%2Fb", "lang=__HIVE_DEFAULT_PARTITION__")):
        (tmp_path / "d" / folder).mkdir(parents=True)
        to.WRITERS[f"a.{container}"](tmp_path / "d" / folder / f"part-0.{container}", [scored(PAIRS[number])])
        (tmp_path / "d" / folder / f".part-0.{container}.crc").write_bytes(b"x")
    (tmp_path / "d" / "_SUCCESS").touch()
    table = read(tmp_path / "d", passthrough=("lang", "year"))
    found = dict(zip(table.column("lang").to_pylist(), table.column("year").to_pylist(), strict=True))
    assert found == {"de": "2024", "a/b": None, None: None}


def test_linked_folders_and_files_are_read_once_each(tmp_path):
    (tmp_path / "store" / "deep").mkdir(parents=True)
    to.write_jsonl(tmp_path / "store" / "deep" / "blob.jsonl", [scored(p) for p in PAIRS])
    (tmp_path / "d" / "own").mkdir(parents=True)
    (tmp_path / "d" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "d" / "f.jsonl").symlink_to(tmp_path / "store" / "deep" / "blob.jsonl")
    (tmp_path / "d" / "own" / "up").symlink_to(tmp_path / "d")
    (tmp_path / "store" / "again").symlink_to(tmp_path / "store")
    (tmp_path / "d" / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"gone\.jsonl"):
        scan_files(FS, str(tmp_path / "d"))
    (tmp_path / "d" / "gone.jsonl").unlink()
    found = scan_files(FS, str(tmp_path / "d"))
    assert [file.path for file in found.files] == ["f.jsonl", "linked/deep/blob.jsonl"]


ODD_TYPES = {
    "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), [{"key": "a", "value": 1}]),
    "view": (pa.array(["x"], pa.string_view()), "x"),
    "list view": (pa.array([["x"]], pa.list_view(pa.string())), ["x"]),
    "large list": (pa.array([["x"]], pa.large_list(pa.large_string())), ["x"]),
    "dictionary": (pa.array(["x"]).dictionary_encode(), "x"),
    "dictionary below": (pa.StructArray.from_arrays([pa.array(["x"]).dictionary_encode()], ["k"]), {"k": "x"}),
    "json below": (
        pa.StructArray.from_arrays([pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"]))], ["k"]),
        {"k": "{}"},
    ),
    "half": (pa.array([1.5], pa.float16()), 1.5),
    "bytes": (pa.array([b"x"], pa.binary_view()), b"x"),
}


@pytest.mark.parametrize("kind", ODD_TYPES)
def test_odd_types_are_passed_through_as_plain_ones(tmp_path, kind):
    column, wanted = ODD_TYPES[kind]
    table = pa.Table.from_pylist([scored(PAIRS[0])]).append_column("odd", column)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    passed = read(tmp_path, passthrough=("odd",)).select(["odd"])
    assert passed.to_pylist() == [{"odd": wanted}]
    pq.write_table(passed, tmp_path / "out.parquet")


def test_type_that_cannot_be_written_is_refused_by_name(tmp_path):
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    ends = pa.RunEndEncodedArray.from_arrays([1], ["x"])
    table = pa.Table.from_pylist([scored(PAIRS[0])]).append_column("u", union).append_column("r", ends)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(SchemaError, match=r"source\.passthrough names u \(.*, r \(.*of a type that cannot be written"):
        opened(tmp_path, passthrough=("u", "r"))
