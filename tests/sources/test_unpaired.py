"""Rows of one answer each: those of one prompt in a file become pairs."""

import fsspec
import pytest

from pipeline import read_pairs
from pipeline.config import Prompts, Source
from pipeline.errors import ConfigError, SchemaError
from pipeline.sources.inspect import inspect_source
from pipeline.sources.open import open_source
from pipeline.sources.prompts import open_prompts
from pipeline.sources.shards import plan_shards
from tests.sources.layouts import pair, turn, write_jsonl, write_parquet

FS = fsspec.filesystem("file")
NO_SCORES = (None, None)
ALONE, OTHER = "lone_answer", "answer_of_a_pair"


def asked(answer, prompt="q"):
    return [turn("user", prompt), turn("assistant", answer)]


def dialogue(answer):
    return [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]


CASES = {
    "trl": ([{"prompt": "q", "completion": "bad", "label": False}, {"prompt": "p", "completion": "x", "label": True},
             {"prompt": "q", "completion": "good", "label": True}, {"prompt": "q", "completion": "y", "label": True}],
            [OTHER, ALONE, None, ALONE], NO_SCORES),
    "messages": ([{"prompt": asked("")[:1], "completion": asked("good")[1:], "label": True},
                  {"prompt": asked("")[:1], "completion": asked("bad")[1:], "label": False}], [None, OTHER], NO_SCORES),
    "ms-swift": ([{"messages": asked("good"), "label": True}, {"messages": asked("bad"), "label": False}],
                 [None, OTHER], NO_SCORES),
    "llama-factory": ([{"conversations": dialogue("bad"), "kto_tag": False},
                       {"conversations": dialogue("good"), "kto_tag": True}], [OTHER, None], NO_SCORES),
    "numbers as labels": ([{"instruction": "q", "input": "", "output": "good", "label": 1},
                           {"instruction": "q", "input": "", "output": "bad", "label": 0}], [None, OTHER], NO_SCORES),
    "labels and scores": ([{"prompt": "q", "completion": "good", "label": True, "rating": 5},
                           {"prompt": "q", "completion": "bad", "label": False, "rating": 2}], [None, OTHER], (5, 2)),
    "helpsteer": ([{"prompt": "q", "response": "so-so", "helpfulness": 2, "verbosity": 9},
                   {"prompt": "q", "response": "good", "helpfulness": 4, "verbosity": 1},
                   {"prompt": "q", "response": "bad", "helpfulness": 0, "verbosity": 1},
                   {"prompt": "p", "response": "a", "helpfulness": 3, "verbosity": 1},
                   {"prompt": "p", "response": "b", "helpfulness": 3, "verbosity": 1},
                   {"prompt": "q", "response": "c", "helpfulness": None, "verbosity": 1}],
                  [OTHER, None, OTHER, "tie", "tie", "null_score"], (4, 0)),
}  # fmt: skip


def table_of(folder, **source):
    given = Source(path=str(folder), **source)
    found = inspect_source(FS, str(folder), given)
    reader, files = open_source(
        FS, str(folder), given, rewards=bool(found.score_columns), policy_logps=False, reference_logps=False
    )
    shards = plan_shards(files, 1)
    return found, [row for shard in shards for row in reader.read(shard).to_pylist()]


@pytest.mark.parametrize(("write", "name"), [(write_jsonl, "a.jsonl"), (write_parquet, "a.parquet")])
@pytest.mark.parametrize("case", CASES)
def test_rows_of_one_prompt_are_paired(case, write, name, tmp_path):
    rows, reasons, rewards = CASES[case]
    write(tmp_path / name, [{"n": number, **row} for number, row in enumerate(rows)])
    found, got = table_of(tmp_path, id_column="n", passthrough=("n",))
    assert [row["drop_reason"] for row in got] == reasons
    assert [row["id"] for row in got] == [str(number) for number in range(len(rows))]
    [kept] = [row for row in got if row["status"] == "kept"]
    want = pair("q", "good", "bad")
    assert {side: kept[side] for side in want} == want
    assert (kept["reward_chosen"], kept["reward_rejected"]) == rewards
    assert kept["id"] == str(kept["n"])
    dropped = {reason: reasons.count(reason) for reason in {*reasons} - {None}}
    assert (found.format, found.num_pairs, found.drop_reasons) == ("unpaired", 1, dropped)


def test_rows_far_apart_are_paired_within_their_file_alone(tmp_path):
    good, bad = ({"prompt": "q", "completion": text, "label": text == "good"} for text in ("good", "bad"))
    others = [{"prompt": str(number), "completion": "x", "label": True} for number in range(3000)]
    write_jsonl(tmp_path / "a.jsonl", [good, *others, bad])
    write_jsonl(tmp_path / "b.jsonl", [good])
    found, got = table_of(tmp_path)
    assert [index for index, row in enumerate(got) if row["status"] == "kept"] == [0]
    assert (found.num_sampled, found.num_pairs) == (3002, 1)
    reader = open_prompts(FS, str(tmp_path), Prompts(path=str(tmp_path)))
    assert [row.prompt for row in reader.rows()][-1] == asked("good")[:1]


def test_a_limit_would_part_the_answers_of_a_prompt(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", CASES["trl"][0])
    with pytest.raises(ConfigError, match="would part the answers"):
        table_of(tmp_path, limit=2)


def test_rows_in_memory_are_paired():
    assert read_pairs(CASES["trl"][0]).to_arrow().num_rows == 1


def test_labels_alone_are_no_rewards(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", CASES["trl"][0])
    with pytest.raises(SchemaError, match="needs rewards"):
        open_source(FS, str(tmp_path), Source(path="s"), rewards=True, policy_logps=False, reference_logps=False)


def test_names_of_others_are_mapped(tmp_path):
    rows = [{"info": {"post": "q"}, "summary": {"text": text}, "axes": {"overall": score}}
            for text, score in (("bad", 2), ("good", 6))]  # fmt: skip
    write_jsonl(tmp_path / "a.jsonl", rows)
    columns = {"prompt": "info.post", "response": "summary.text", "score": "axes.overall"}
    _, got = table_of(tmp_path, columns=columns)
    assert [(row["drop_reason"], row["reward_chosen"]) for row in got] == [(OTHER, None), (None, 6)]
