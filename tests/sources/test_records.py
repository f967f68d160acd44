"""JSON arrays, CSV and TSV: the same rows as in JSON Lines, from any row on, in bounded memory."""

import csv
import gzip
import io
import json

import fsspec
import pytest

from pipeline.config import Source
from pipeline.errors import SourceError
from pipeline.sources.blocks import decoded, read_rows
from pipeline.sources.files import scan_files
from pipeline.sources.open import read_all
from pipeline.sources.shards import plan_shards
from tests.sources import layouts as to

FS = fsspec.filesystem("file")
HARD = 'a, "b"\r\n\n;\t[{}]\\" ü \u2028'
ROWS = [{"prompt": f"{n} {HARD}" * (n + 1), "chosen": HARD if n % 3 else "x", "rejected": "[1,"} for n in range(200)]


def as_csv(rows, delimiter=",", **options):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter, **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


WRITTEN = {
    "a.json": json.dumps(ROWS).encode(),
    "indented.json": b"\xef\xbb\xbf\n" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode() + b"\n",
    "a.jsonl": b"[" + b",\n".join(json.dumps(row).encode() for row in ROWS) + b",]",
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "object.json": json.dumps({"version": "1.0", "data": ROWS, "n": {"a": [1]}}).encode(),
    "object-indented.json": b"\xef\xbb\xbf\n" + json.dumps({"about": "x", "my rows": ROWS}, indent=1).encode(),
    "object.json.gz": gzip.compress(json.dumps({"train": ROWS}).encode()),
    "a.csv": as_csv(ROWS),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(ROWS, quoting=csv.QUOTE_ALL, lineterminator="\n"),
    "semicolons.csv": as_csv(ROWS, ";"),
    "a.tsv": as_csv(ROWS, "\t"),
    "a.csv.gz": gzip.compress(as_csv(ROWS)),
}


def rows_of(path, shard_rows=200):
    scan = scan_files(FS, str(path))
    shards = plan_shards(scan.files, shard_rows)
    return [row for shard in reversed(shards) for row in reversed(decoded(read_rows(FS, scan.root, shard, ()), shard))]


@pytest.mark.parametrize("name", WRITTEN)
def test_rows_are_those_of_json_lines_wherever_reading_starts(tmp_path, name):
    (tmp_path / name).write_bytes(WRITTEN[name])
    assert rows_of(tmp_path) == rows_of(tmp_path, 33) == ROWS[::-1]


def test_empty_cell_is_null_and_other_text_stays_as_it_is(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,system,score\n007, x ,NA,,1.50\n\n8,y,null,s,2\n")
    assert rows_of(tmp_path)[::-1] == [
        {"prompt": "007", "chosen": " x ", "rejected": "NA", "system": None, "score": "1.50"},
        {"prompt": "8", "chosen": "y", "rejected": "null", "system": "s", "score": "2"},
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"a": 1}, {"a": 2}', r"is cut short \(its JSON array has no end\)"),
        ("a.json", b'[{"a": "', r"is cut short"),
        ("a.json", b'[{"a": 1}]\n[{"a": 2}]', r"goes on after the end of its JSON array"),
        ("a.json", b'{"train": [{"a": 1}], "n": 1, "test": [{"a": 1}]}', r"several lists of rows: train, test"),
        ("a.json", b'{\n"data": [{"a": 1}]}\n{"data": [{"a": 1}]}', r"goes on after its list data"),
        ("a.csv", b'prompt,chosen\na,b\na,"b', r"is no CSV in row 1 "),
        ("a.csv", b"prompt,prompt\na,b\n", r"columns of the same name: prompt"),
        ("a.csv", "prompt,chosen\na,b\n".encode("utf-16"), r"is not UTF-8"),
    ],
)
def test_damaged_file_is_refused_before_anything_runs(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        scan_files(FS, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "head", "between", "end"),
    [
        ("a.json", b"[", b",", b"]"),
        ("a.json", b'{"data": [', b",", b"]}"),
        ("a.jsonl", b"\xef\xbb\xbf", b"\r\n", b""),
        ("a.jsonl.gz", b"", b"\n", b"\n"),
    ],
)
def test_hostile_rows_cost_themselves_alone(name, head, between, end, tmp_path):
    good = json.dumps(to.as_strings(to.pair())).encode()
    deep = b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    long = json.dumps({**to.as_strings(to.pair()), "chosen": "x" * 5_000_000}).encode()
    long_number = b'{"prompt": ' + b"9" * 5000 + b"}"
    odd = [
        good,
        deep,
        long_number,
        b"1",
        b'"x"',
        b"nonsense",
        b'{"prompt": "\xff"}',
        long,
        b'{"prompt": NaN}',
        b"{'a': 1}",
    ]
    written = head + between.join([*odd, good]) + end
    (tmp_path / name).write_bytes(gzip.compress(written) if name.endswith(".gz") else written)
    reasons = ["invalid_json"] * 5 + ["undecodable_text", None, "null_field", "invalid_json"]
    table = read_all(FS, str(tmp_path), Source(path="x"))
    assert table.column("drop_reason").to_pylist() == [None, *reasons, None]
    assert table.column("source_row").to_pylist() == list(range(11))


def test_odd_row_of_csv_costs_itself_alone(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b'prompt,chosen,rejected\r\na,b,c\na,\xff,c\na,x\0y,c\na,b\na,b,c,d\na,"b\n\r\nb",c'
    )
    table = read_all(FS, str(tmp_path), Source(path="x"))
    reasons = [None, "undecodable_text", None, "invalid_json", "invalid_json", None]
    assert table.column("drop_reason").to_pylist() == reasons


@pytest.mark.parametrize("name", to.WRITERS)
def test_rows_of_hostile_messages_cost_themselves_alone(name, tmp_path):
    def row(content="x", turns=1, tools=None, calls=None):
        prompt = [to.turn(("user", "assistant")[index % 2], "q") for index in range(turns)]
        chosen = [{**to.turn("assistant", content), "tool_calls": calls}]
        return {"prompt": prompt, "chosen": chosen, "rejected": [to.turn("assistant", "r")], "tools": tools}

    deep = "[" * 100_000 + "]" * 100_000
    good = row(tools='[{"name": "f"}]')
    kept = [row("x" * 5_000_000), row("\0"), row(turns=5001)]
    dropped = {
        "invalid_tools": row(tools=deep),
        "invalid_tool_calls": row(calls=deep),
        "empty_response": row(" " * 10**6),
    }
    to.WRITERS[name](tmp_path / name, [good, *kept, *dropped.values(), good])
    table = read_all(FS, str(tmp_path), Source(path="x"))
    assert table.column("drop_reason").to_pylist() == [None, None, None, None, *dropped, None]
    assert [len(prompt) for prompt in table.column("prompt").to_pylist()[:4]] == [1, 1, 1, 5001]
