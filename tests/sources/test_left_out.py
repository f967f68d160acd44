"""Rows that the config leaves out: `limit`, `where` and `decontaminate`, alike in every container."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Source
from pipeline.drops import Reason, share_of_faults
from pipeline.errors import AlignpotError, ConfigError
from pipeline.sources.contamination import Contamination
from pipeline.sources.inspect import inspect_source
from pipeline.sources.left_out import Sample
from pipeline.sources.probe import FileKind
from pipeline.sources.shards import SourceFile, plan_shards
from tests.sources import layouts as to
from tests.sources.test_reader import opened, read_all

ROWS = [
    {
        **to.pair(prompt=f"Question {n}?"),
        "number": n,
        "lang": ["de", "en", None][n % 3],
        "meta": {"stars": n % 5, "by": ["x", "y"][n % 2]},
        "tags": ["a", "b"][: n % 3],
    }
    for n in range(60)
]


def kept_numbers(path, *, shard_rows=7, **source):
    reader, files = opened(path, passthrough=("number",), **source)
    table = read_all(reader, files, shard_rows)
    assert table.num_rows == 60
    is_kept = pa.compute.equal(table["status"], "kept")
    dropped = table.filter(pa.compute.invert(is_kept))
    assert {*dropped["drop_reason"].to_pylist()} <= {"filtered", "beyond_limit", "contaminated"}
    assert dropped["prompt"].null_count == dropped["number"].null_count == dropped.num_rows
    return table.filter(is_kept)["number"].to_pylist()


@pytest.mark.parametrize("name", to.WRITERS)
@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ('lang == "de"', lambda row: row["lang"] == "de"),
        ("number >= 10 and number < 20", lambda row: 10 <= row["number"] < 20),
        ('meta.stars > 2 or meta.by == "y"', lambda row: row["meta"]["stars"] > 2 or row["meta"]["by"] == "y"),
        ("lang is None", lambda row: row["lang"] is None),
        ("number < 0", lambda _: False),
    ],
)
def test_where_keeps_the_rows_for_which_it_holds(tmp_path, name, where, holds):
    to.WRITERS[name](tmp_path / name, ROWS)
    numbers = [row["number"] for row in ROWS if holds(row)]
    assert kept_numbers(tmp_path, where=where) == numbers
    found = inspect_source(opened(tmp_path)[0].fs, str(tmp_path), Source(path=str(tmp_path), where=where))
    assert (found.num_pairs, found.drop_reasons.get("filtered", 0)) == (len(numbers), 60 - len(numbers))
    assert found.share_dropped == 0


def test_where_reads_mapped_names_fields_and_texts_of_the_source(tmp_path):
    rows = [{"q": f"What is {n}?", "good": "y" * n, "bad": "z", "more": {"ok": n > 5}} for n in range(1, 9)]
    to.WRITERS["a.jsonl"](tmp_path / "a.jsonl", rows)
    mapping = {"prompt": "q", "chosen": "good", "rejected": "bad", "fine": "more.ok"}
    reader, files = opened(tmp_path, columns=mapping, where="length(chosen) < 8 and fine == True")
    assert read_all(reader, files)["status"].to_pylist() == ["dropped"] * 5 + ["kept"] * 2 + ["dropped"]


def test_where_of_csv_compares_texts_and_numbers_written_as_text(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,score\na,b,c,9\na,b,d,10\na,b,e,\n")
    reader, files = opened(tmp_path, where="number(score) > 9")
    assert read_all(reader, files)["drop_reason"].to_pylist() == ["filtered", None, "filtered"]
    with pytest.raises(ConfigError, match=r"source.where score > 9 does not fit the columns"):
        opened(tmp_path, where="score > 9")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_where_of_a_column_that_is_not_there_is_refused_with_the_columns(tmp_path, name):
    to.WRITERS[name](tmp_path / name, ROWS)
    with pytest.raises(AlignpotError, match=r"source.where names \['language'\].*'lang'"):
        opened(tmp_path, where='language == "de"')


def test_rows_that_where_cannot_be_asked_of_are_faults(tmp_path):
    lines = [f'{{"prompt": "a", "chosen": "b", "rejected": "c", "n": {n}}}' for n in (1, '"x"', 2)] + ["{"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    reader, files = opened(tmp_path, where="n > 1")
    reasons = read_all(reader, files)["drop_reason"].to_pylist()
    assert reasons == ["filtered", "passthrough_type", None, "invalid_json"]
    texts = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    (tmp_path / "a.jsonl").unlink()
    pq.write_table(
        pa.table({"prompt": ["x"] * 3, "chosen": ["y"] * 3, "rejected": ["z"] * 3, "t": texts}), tmp_path / "a.parquet"
    )
    reader, files = opened(tmp_path, where='t == "a"')
    assert read_all(reader, files)["drop_reason"].to_pylist() == [None, "undecodable_text", "filtered"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "stream.arrow"])
def test_a_limit_takes_rows_from_the_whole_source_whatever_the_shards(tmp_path, name):
    (tmp_path / "x").mkdir()
    to.WRITERS[name](tmp_path / "x" / name, ROWS[:17])
    to.WRITERS[name](tmp_path / name, ROWS[17:])
    taken = kept_numbers(tmp_path, limit=11)
    assert len(taken) == 11
    assert taken == kept_numbers(tmp_path, limit=11, shard_rows=1000)
    assert min(taken) < 10
    assert max(taken) > 50
    assert taken != kept_numbers(tmp_path, limit=11, seed=1)
    both = kept_numbers(tmp_path, limit=30, where='lang == "en"')
    assert both == [n for n in kept_numbers(tmp_path, limit=30) if n % 3 == 1]
    assert len(kept_numbers(tmp_path, limit=60)) == len(kept_numbers(tmp_path, limit=10**9)) == 60


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), data=st.data())
def test_a_sample_takes_one_row_of_each_stretch(sizes, data):
    files = [SourceFile(path=f"{i}", kind=FileKind.PARQUET, num_rows=n, size=1, digest="") for i, n in enumerate(sizes)]
    num_taken = data.draw(st.integers(1, sum(sizes)))
    sample = Sample.of(files, num_taken, seed=data.draw(st.integers(0, 3)))
    taken = [True] * sum(sizes)
    for shard in plan_shards(files, data.draw(st.integers(1, 50))) if sample else []:
        start = sum(sizes[: int(shard.file)]) + shard.first_row
        for row in sample.left_out(shard.file, shard.first_row, shard.num_rows):
            taken[start + row] = False
    assert sum(taken) == num_taken
    stretches = [row * num_taken // sum(sizes) for row, is_taken in enumerate(taken) if is_taken]
    assert stretches == list(range(num_taken))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_pairs_with_the_prompt_of_a_benchmark_are_left_out(tmp_path, name):
    to.WRITERS[name](tmp_path / name, [*ROWS[:3], {**ROWS[3], "chosen": ROWS[3]["rejected"]}])
    reader, files = opened(tmp_path, id_column="number")
    benchmarks = Contamination.of_texts(["QUESTION 1", "something else", "Question 3?"], 13)
    table = read_all(type(reader)(**{**vars(reader), "benchmarks": benchmarks}), files)
    assert table["drop_reason"].to_pylist() == [None, "contaminated", None, "identical_responses"]
    assert table["id"].to_pylist() == ["0", "1", "2", "3"]
    assert table["prompt"].null_count == 2


def test_what_a_rule_leaves_out_is_no_fault():
    assert share_of_faults({"source: filtered": 90, "source: null_field": 1}, 100) == 0.1
    assert share_of_faults({"filtered": 5}, 5) == 0
    assert {str(reason) for reason in Reason if reason.by_rule} >= {"filtered", "beyond_limit", "contaminated"}


def test_a_run_without_rules_keeps_its_fingerprint():
    keys = {"format", "id_column", "pairs", "passthrough"}
    assert Source(path="s").fingerprint().keys() == Source(path="s", seed=3, ngram=5).fingerprint().keys() == keys
    assert {"where", "limit", "seed"} <= Source(path="s", where="a == 1", limit=5).fingerprint().keys()
