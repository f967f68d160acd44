"""Rows that are held out: every pair of a prompt on one side, the same side everywhere, and every file of one side."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import DatasetDict, load_dataset, load_from_disk

from pipeline import read_pairs
from pipeline import schema as names
from pipeline.config import Storage
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.data.verify import verify
from pipeline.errors import DataError
from pipeline.selection.report import render
from pipeline.steps.select import prepare_select, select_subsets
from tests.steps import scored_data as data

SHARES = {"test": 0.3, "held_2": 0.1}
SPLITS = ["held_2", "test", "train"]


def subset(scored: str, path: Path, **keys: Any) -> dict[str, Any]:
    """Write a subset; its report."""
    output = {"formats": keys.pop("formats", ["hf", "parquet"])}
    [report] = select_subsets(prepare_select(data.select_config(scored, path, select=keys, output=output)))
    return report


def ids_of(path: Path) -> dict[str, list[str]]:
    loaded = load_from_disk(str(path / "hf"))
    assert isinstance(loaded, DatasetDict)
    return {name: [*loaded[name]["id"]] for name in sorted(loaded)}


def test_splits_share_out_what_would_be_selected_without_them(scored: str, scored_rows: pa.Table, tmp_path: Path):
    plain = subset(scored, tmp_path / "plain")
    report = subset(scored, tmp_path / "split", split=SHARES)
    found = ids_of(tmp_path / "split")
    assert [*found] == SPLITS
    assert sorted(itertools.chain(*found.values())) == sorted(ids_of(tmp_path / "plain")["train"])
    assert report["selection"]["splits"] == {name: len(ids) for name, ids in found.items()}
    assert sum(report["selection"]["splits"].values()) == report["selection"]["k"] == plain["selection"]["k"]
    assert "split held_2" in render(report)
    prompts = {row[names.ID]: json.dumps(row[names.PROMPT]) for row in scored_rows.to_pylist()}
    sides = [{prompts[each] for each in ids} for ids in found.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))
    # The plain subset tells nothing of splits.
    told = [(tmp_path / "plain" / name).read_text() for name in ("run.json", "_SUCCESS.json", "report.json")]
    assert "split" not in told[2]
    assert not any('"split":' in json.dumps({**json.loads(text), "config": None}) for text in told)


def test_a_prompt_is_on_the_same_side_in_every_subset(scored: str, tmp_path: Path):
    subset(scored, tmp_path / "small", split=SHARES)
    subset(scored, tmp_path / "large", split=SHARES, fraction=0.9)
    subset(scored, tmp_path / "other", split=SHARES, fraction=0.9, seed=1)
    small, large, other = (ids_of(tmp_path / name) for name in ("small", "large", "other"))
    side = {each: name for name, ids in large.items() for each in ids}
    assert all(side[each] == name for name, ids in small.items() for each in ids if each in side)
    assert {*side} == {each for ids in other.values() for each in ids}
    assert large != other


def test_bytes_are_the_same_again_and_files_are_whole(scored: str, tmp_path: Path):
    for name in ("one", "two"):
        subset(scored, tmp_path / name, split=SHARES)
    assert data.objects(tmp_path / "one") == data.objects(tmp_path / "two")
    subset(scored, tmp_path / "two", split=SHARES)  # finds it
    assert data.objects(tmp_path / "one") == data.objects(tmp_path / "two")
    assert "all as written" in verify(Place.open(str(tmp_path / "one"), Storage()))


@pytest.mark.parametrize("formats", [["hf"], ["parquet"]])
def test_each_format_is_read_back_split_by_split(formats: list[str], scored: str, tmp_path: Path):
    path = tmp_path / "subset"
    subset(scored, tmp_path / "both", split=SHARES)
    subset(scored, path, split=SHARES, formats=formats)
    wanted = ids_of(tmp_path / "both")
    if formats == ["parquet"]:
        files = {name: f"{path}/parquet/{name}-*.parquet" for name in SPLITS}
        loaded = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
        assert {name: [*loaded[name]["id"]] for name in sorted(loaded)} == wanted
        assert {file.name.split("-")[0] for file in (path / "parquet").iterdir()} == {*SPLITS}
    ours = Dataset.open(Place.open(str(path), Storage()), SUBSET)
    assert {name: ours.of_split(name).table([names.ID])[names.ID].to_pylist() for name in ours.splits} == wanted
    folder = path / formats[0]
    assert {*read_pairs(folder, id_column="id").to_arrow()["id"].to_pylist()} == {*wanted["train"]}
    assert {*read_pairs(folder, id_column="id", split="test").to_arrow()["id"].to_pylist()} == {*wanted["test"]}


def test_a_former_rule_takes_its_split_along(scored: str, tmp_path: Path):
    subset(scored, tmp_path / "first", split=SHARES)
    subset(scored, tmp_path / "again", stats_from=str(tmp_path / "first" / "_SUCCESS.json"))
    assert ids_of(tmp_path / "first") == ids_of(tmp_path / "again")


@pytest.mark.parametrize(("keys", "empty"), [({"k": 2, "split": {"test": 0.001}}, "test"),
                                             ({"k": 2, "split": {"test": 0.999}}, "train")])  # fmt: skip
def test_a_split_without_rows_is_refused(keys: dict[str, Any], empty: str, scored: str, tmp_path: Path):
    with pytest.raises(DataError, match=rf"select\.split .* leaves no row for {empty}; got 2 chosen rows.*Choose more"):
        subset(scored, tmp_path / "out", **keys)
