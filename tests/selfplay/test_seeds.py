"""Seed prompts: read from pairs or from prompts alone, each once, limited and held out whatever their order."""

import json
import logging
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.demo
from pipeline import schema as s
from pipeline.config import Prompts
from pipeline.errors import DataError, SchemaError, SourceError
from pipeline.selfplay.seeds import read_prompts
from pipeline.sources.contamination import Contamination, read_benchmark
from pipeline.sources.rows import prompt_digest
from tests.sources import layouts as to

FS = fsspec.filesystem("file")


def user(text):
    return [to.turn("user", text)]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path, benchmarks=None, **config):
    return read_prompts(FS, str(path), Prompts(path=str(path), **config), benchmarks)


def usable(seeds):
    return {row[s.ID]: row[s.PROMPT] for row in seeds.table.to_pylist() if row[s.STATUS] == s.KEPT}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Name a river."}, user("Name a river.")),
        ({"question": "Why?", "answer": "So."}, user("Why?")),
        ({"instruction": "Add.", "input": "1 and 2"}, user("Add.\n1 and 2")),
        ({"prompt": "Hi.", "system": "Be brief."}, [to.turn("system", "Be brief."), *user("Hi.")]),
        ({"prompt": to.LONG_PAIR["prompt"]}, to.LONG_PAIR["prompt"]),
        ({"messages": [*user("Hi."), to.turn("assistant", "Hello.")]}, user("Hi.")),
        ({"messages": [*to.LONG_PAIR["prompt"], to.turn("assistant", "Yes.")]}, to.LONG_PAIR["prompt"]),
    ],
)
def test_prompts_alone_are_read_in_every_layout(tmp_path, row, expected):
    seeds = read(write_lines(tmp_path / "p.jsonl", [row]))
    assert seeds.format == "prompts"
    assert usable(seeds) == {prompt_digest(expected): expected}


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (to.as_messages, "messages"),
        (to.as_implicit, "implicit"),
        (to.as_binarized, "binarized"),
        (to.as_strings, "strings"),
        (lambda pair: {**to.as_strings(pair), "initial_reason_steps": "Well,"}, "strings"),
        (to.as_compared, "compared"),
        (to.as_candidates, "candidates"),
        (to.as_transcript, "transcript"),
    ],
)
def test_prompts_of_pairs_are_those_that_pairs_would_have(tmp_path, write, name):
    seeds = read(write_lines(tmp_path / "p.jsonl", [write(to.pair()), write(to.pair("Another?", "b", "c"))]))
    assert seeds.format == name
    assert sorted(usable(seeds).values(), key=str) == sorted([to.pair()["prompt"], user("Another?")], key=str)


def test_parquet_arrow_and_saved_datasets_are_read_as_lines_are(tmp_path):
    import datasets

    rows = [{"prompt": f"Question {i}?", "other": i} for i in range(5)]
    table = pa.Table.from_pylist(rows)
    expected = usable(read(write_lines(tmp_path / "p.jsonl", rows)))
    pq.write_table(table, tmp_path / "p.parquet")
    feather.write_feather(table, tmp_path / "p.arrow", compression="uncompressed")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    for name in ("p.parquet", "p.arrow", "saved"):
        assert usable(read(tmp_path / name)) == expected


def test_prompts_of_unfit_answers_are_still_prompts(tmp_path):
    rows = [
        {"prompt": "Tied?", "all_generated_responses": ["a", "b"], "all_rm_scores": [1.0, 1.0]},
        {"prompt": "Fine?", "all_generated_responses": ["a", "b"], "all_rm_scores": [1.0, 2.0]},
        {"prompt": " ", "all_generated_responses": ["a", "b"], "all_rm_scores": [1.0, 2.0]},
    ]
    seeds = read(write_lines(tmp_path / "p.jsonl", rows))
    assert sorted(prompt[0]["content"] for prompt in usable(seeds).values()) == ["Fine?", "Tied?"]
    assert seeds.dropped == {"empty_prompt": 1}


def test_every_row_is_in_the_table_with_its_reason(tmp_path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [{"prompt": "a"}, {"prompt": "a"}, {"prompt": None}, {"prompt": "b", "tools": tools}, {"prompt": "c"}]
    path = tmp_path / "p.jsonl"
    write_lines(path, rows)
    with path.open("ab") as file:
        file.write(b"{no json\n")
    seeds = read(path, limit=1)
    reasons = {row[s.ID]: row[s.DROP_REASON] for row in seeds.table.to_pylist() if row[s.STATUS] == s.DROPPED}
    assert seeds.table.num_rows == 6
    assert seeds.num_usable == 1
    assert reasons.pop("p.jsonl:1") == "duplicate_prompt"
    assert reasons.pop("p.jsonl:2") == "null_field"
    assert reasons.pop("p.jsonl:3") == "unsupported_content"
    assert reasons.pop("p.jsonl:5") == "invalid_json"
    assert list(reasons.values()) == ["beyond_limit"]
    assert seeds.table.schema == s.PROMPT_SCHEMA


def test_ids_come_from_the_column_and_equal_prompts_keep_the_smallest(tmp_path):
    rows = [{"key": 7, "prompt": "a"}, {"key": 30, "prompt": "b"}, {"key": 12, "prompt": "a"}, {"prompt": "c"}]
    seeds = read(write_lines(tmp_path / "p.jsonl", rows), id_column="key")
    assert usable(seeds) == {"12": user("a"), "30": user("b")}
    assert seeds.dropped == {"duplicate_prompt": 1, "null_id": 1}


def test_one_id_for_two_prompts_is_an_error(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"key": "k", "prompt": "a"}, {"key": "k", "prompt": "b"}])
    with pytest.raises(DataError, match="'k'"):
        read(path, id_column="key")


def test_text_is_a_prompt_only_where_the_format_is_named(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"text": "Name a river."}])
    assert list(usable(read(path, format="prompts")).values()) == [user("Name a river.")]
    with pytest.raises(SourceError, match="no known format"):
        read(path)


def test_errors_speak_of_the_keys_of_prompts(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"body": "a"}])
    with pytest.raises(SchemaError, match=r"prompts\.format prompts needs"):
        read(path, format="prompts")
    with pytest.raises(SchemaError, match=r"prompts\.id_column 'key'"):
        read(write_lines(tmp_path / "q.jsonl", [{"prompt": "a"}]), id_column="key")
    with pytest.raises(SourceError, match=r"prompts\.path"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="empty_prompt"):
        read(write_lines(tmp_path / "r.jsonl", [{"prompt": ""}]))


@settings(max_examples=25)
@given(st.lists(st.integers(0, 60), min_size=4, max_size=60), st.randoms(use_true_random=False), st.integers(1, 40))
def test_order_of_rows_and_files_changes_nothing(tmp_path_factory, numbers, rng, limit):
    folder = tmp_path_factory.mktemp("prompts")
    rows = [{"key": f"k{number}-{i}", "prompt": f"Question {number}?"} for i, number in enumerate(numbers)]
    one = read(write_lines(folder / "one.jsonl", rows), id_column="key", limit=limit)
    shuffled = rng.sample(rows, len(rows))
    (folder / "two").mkdir()
    for i in range(2):
        write_lines(folder / "two" / f"{i}.jsonl", shuffled[i::2])
    two = read(folder / "two", id_column="key", limit=limit)
    assert usable(one) == usable(two)
    assert one.dropped == two.dropped
    assert one.num_usable == min(limit, len(set(numbers)))
    more = read(folder / "one.jsonl", id_column="key", limit=limit + 3)
    assert set(usable(one)) <= set(usable(more))


def test_contaminated_prompts_are_dropped(tmp_path):
    riddle = "What walks on four legs in the morning, two at noon, and three in the evening?"
    write_lines(tmp_path / "bench.jsonl", [{"question": riddle}, {"question": "Name a river."}])
    (tmp_path / "bench.txt").write_text(f"{riddle}\n\nName a river.\n")
    rows = [
        {"prompt": f"A riddle: {riddle.upper().replace(',', ' -')}"},
        {"prompt": "name a RIVER"},
        {"prompt": "Name a river. Then name a lake."},
        {"prompt": "What walks on four legs in the morning, two at noon?"},
    ]
    path = write_lines(tmp_path / "p.jsonl", rows)
    for name in ("bench.jsonl", "bench.txt"):
        benchmarks = Contamination.of_texts(read_benchmark(FS, str(tmp_path / name)), ngram=13)
        seeds = read(path, benchmarks)
        assert sorted(p[0]["content"] for p in usable(seeds).values()) == [rows[3]["prompt"], rows[2]["prompt"]][::-1]
        assert seeds.dropped == {"contaminated": 2}


def test_benchmarks_without_prompts_are_refused_and_bad_rows_are_told(tmp_path, caplog):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SourceError, match="holds no prompt"):
        read_benchmark(FS, str(tmp_path / "empty.txt"))
    with pytest.raises(SourceError, match="does not exist"):
        read_benchmark(FS, str(tmp_path / "absent.txt"))
    write_lines(tmp_path / "bench.jsonl", [{"text": "a"}, {"text": None}, {"text": "b"}])
    with caplog.at_level(logging.WARNING):
        assert read_benchmark(FS, str(tmp_path / "bench.jsonl")) == ["a", "b"]
    assert "1 rows hold no prompt" in caplog.text


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=4),
    st.lists(st.sampled_from("abc"), max_size=9),
    st.integers(2, 4),
)
def test_overlap_is_that_of_the_definition(benchmarks, words, n):
    def grams(text):
        return {tuple(text[i : i + n]) for i in range(max(1, len(text) - n + 1))} - {()}

    expected = any(grams(words) & grams(text) for text in benchmarks)
    assert Contamination.of_texts(map(" ".join, benchmarks), n).hits(" ".join(words)) == expected


def test_the_demo_prompts_are_read():
    path = Path(pipeline.demo.__file__).parent / "prompts.jsonl"
    seeds = read(path, id_column="id")
    assert (seeds.num_usable, seeds.dropped, seeds.format) == (113, {}, "prompts")
    assert seeds.table.column(s.ID).to_pylist() == sorted(seeds.table.column(s.ID).to_pylist())
