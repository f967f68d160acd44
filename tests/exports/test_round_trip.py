"""What an export writes is read back as the same pairs, from the folder that the export made."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from datasets import load_dataset, load_from_disk

from pipeline.config import Source
from pipeline.data.files import file_shards
from pipeline.exports.formats import FORMATS
from pipeline.sources.inspect import inspect_source
from pipeline.sources.open import read_all
from tests.exports.conftest import export, good_rows, json_rows, turn, write_subset

SIDES = ("prompt", "chosen", "rejected")
PAIRED = [name for name, form in FORMATS.items() if not form.unpaired]


def pairs_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{side: row[side] for side in SIDES} for row in rows]


def read_back(folder: Path, **source: Any) -> list[dict[str, Any]]:
    return read_all(fsspec.filesystem("file"), str(folder), Source(path=str(folder), **source)).to_pylist()


@pytest.mark.parametrize("slim", [False, True])
@pytest.mark.parametrize("to", PAIRED)
def test_export_is_read_back_as_the_same_pairs(to: str, slim: bool, subset: str, tmp_path: Path):
    export(subset, to, tmp_path / "out", slim=slim)
    assert pairs_of(read_back(tmp_path / "out")) == pairs_of(good_rows())
    found = inspect_source(fsspec.filesystem("file"), str(tmp_path / "out"))
    assert (found.num_pairs, found.problems) == (12, ())


@pytest.mark.parametrize("to", [name for name, form in FORMATS.items() if form.unpaired])
def test_rows_of_one_answer_are_paired_again(to: str, subset: str, tmp_path: Path):
    export(subset, to, tmp_path / "out")
    rows = read_back(tmp_path / "out")
    pairs = pairs_of([row for row in rows if row["status"] == "kept"])
    assert sorted(map(str, pairs)) == sorted(map(str, pairs_of(good_rows())))
    assert [row["drop_reason"] for row in rows].count("answer_of_a_pair") == len(pairs)


@pytest.mark.parametrize("to", [*FORMATS])
def test_rows_held_out_are_apart_in_every_format(to: str, tmp_path: Path):
    rows, num_held_out = good_rows(), 4
    shards = file_shards({"holdout": num_held_out, "train": len(rows) - num_held_out}, 5)
    write_subset(str(tmp_path / "subset"), rows, shards=shards)
    out = tmp_path / "out"
    told = export(tmp_path / "subset", to, out, rows_per_file=3)
    assert f"held out as holdout: {num_held_out * FORMATS[to].rows_per_pair} rows" in told
    assert told == export(tmp_path / "subset", to, out, rows_per_file=3)
    if FORMATS[to].container == "hf":
        loaded = load_from_disk(str(out / "hf"))
    else:
        loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    held_out = {row["id"] for row in rows[:num_held_out]}
    assert {*loaded["holdout"]["id"]} == held_out
    assert {*loaded["train"]["id"]} == {row["id"] for row in rows} - held_out
    if FORMATS[to].one_file:
        named = json.loads((out / "dataset_info.json").read_text())
        files = {name: out / entry["file_name"] for name, entry in named.items()}
        assert [*files] == ["alignpot", "alignpot_holdout"]
        assert {json.loads(line)["id"] for line in files["alignpot_holdout"].read_text().splitlines()} == held_out
        assert len(files["alignpot"].read_text().splitlines()) == loaded["train"].num_rows
    if not FORMATS[to].unpaired:
        assert pairs_of(read_back(out)) == pairs_of(rows[num_held_out:])
        assert pairs_of(read_back(out, split="holdout")) == pairs_of(rows[:num_held_out])


def test_answers_already_begun_are_written_whole(tmp_path: Path):
    rows = good_rows(3)
    rows[1]["prompt"] = [*rows[1]["prompt"], turn("assistant", "Well, ")]
    write_subset(str(tmp_path / "subset"), rows)
    export(tmp_path / "subset", "openrlhf", tmp_path / "out")
    [_, got, _] = json_rows(tmp_path / "out")
    assert got["prompt"] == rows[1]["prompt"][:-1]
    for side in ("chosen", "rejected"):
        assert got[side][0]["content"] == "Well, " + rows[1][side][0]["content"]
    export(tmp_path / "subset", "trl", tmp_path / "trl")
    assert "ref_chosen_logps" not in load_from_disk(str(tmp_path / "trl" / "hf"))["train"].column_names
