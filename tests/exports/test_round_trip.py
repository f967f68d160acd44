"""What an export writes is read back as the same pairs, from the folder that the export made."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
from datasets import load_from_disk

from pipeline.config import Source
from pipeline.exports.formats import FORMATS
from pipeline.sources.inspect import inspect_source
from pipeline.sources.reader import read_all
from tests.exports.conftest import export, good_rows, json_rows, turn, write_subset

SIDES = ("prompt", "chosen", "rejected")
PAIRED = [name for name, form in FORMATS.items() if not form.unpaired]


def pairs_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{side: row[side] for side in SIDES} for row in rows]


def read_back(folder: Path) -> list[dict[str, Any]]:
    return read_all(fsspec.filesystem("file"), str(folder), Source(path=str(folder))).to_pylist()


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
