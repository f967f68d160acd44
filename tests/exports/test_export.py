"""An export is complete or not there, the same bytes from any copy of the subset, and never a mixture of two."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_from_disk

from pipeline.data import files
from pipeline.data.place import Place
from pipeline.errors import ConfigError, DataError, FingerprintError, IntegrityError, SourceError
from pipeline.exports.formats import FORMATS
from tests.exports.conftest import contents, export, good_rows, json_rows, write_subset


@pytest.mark.parametrize("to", FORMATS)
def test_either_copy_of_a_subset_gives_the_same_bytes(to: str, tmp_path: Path):
    for name, formats, size in (("a", ("hf",), 5), ("b", ("parquet",), 3)):
        write_subset(str(tmp_path / name), good_rows(), formats=formats, rows_per_file=size)
        export(tmp_path / name, to, tmp_path / f"{name}-out", rows_per_file=4)
    assert contents(tmp_path / "a-out") == contents(tmp_path / "b-out")


@pytest.mark.parametrize("to", FORMATS)
def test_export_written_again_changes_nothing(subset: str, to: str, tmp_path: Path):
    told = export(subset, to, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert export(subset, to, tmp_path / "out") == told
    assert contents(tmp_path / "out") == before
    manifest = json.loads(before["_SUCCESS.json"])
    assert manifest["kind"] == "export"
    assert manifest["num_rows"] == 12 * FORMATS[to].rows_per_pair == sum(f["num_rows"] for f in manifest["files"])


@pytest.mark.parametrize(
    ("change", "field"),
    [({"to": "axolotl"}, "export"), ({"slim": True}, "slim"), ({"subset": "other"}, "subset")],
)
def test_other_export_on_the_same_folder_is_refused(subset: str, change: dict, field: str, tmp_path: Path):
    write_subset(str(tmp_path / "other"), good_rows(), fingerprint={"scored": "xyz"})
    export(subset, "openrlhf", tmp_path / "out")
    before = contents(tmp_path / "out")
    asked = {"subset": subset, "to": "openrlhf", **change}
    source = tmp_path / "other" if asked["subset"] == "other" else subset
    with pytest.raises(FingerprintError, match=field):
        export(source, asked["to"], tmp_path / "out", slim=asked.get("slim", False))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("to", ["trl", "llama-factory"])
def test_killed_export_goes_on_to_the_same_bytes(to: str, subset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    export(subset, to, tmp_path / "whole", rows_per_file=5)
    created = files.create_from_file

    def dies_at_the_second(place: Place, source: Path) -> bool:
        if "-00001-of-" in str(place):
            raise RuntimeError("killed")
        return created(place, source)

    with monkeypatch.context() as patch:
        patch.setattr(files, "create_from_file", dies_at_the_second)
        with pytest.raises(RuntimeError):
            export(subset, to, tmp_path / "out", rows_per_file=5)
    assert "_SUCCESS.json" not in contents(tmp_path / "out")
    export(subset, to, tmp_path / "out", rows_per_file=7)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.s3
@pytest.mark.parametrize("to", ["trl", pytest.param("nemo-rl", marks=pytest.mark.slow)])
def test_export_from_s3_to_s3_is_that_of_the_local_disk(to: str, subset: str, s3, tmp_path: Path):
    url = write_subset(s3.url("subset"), good_rows(), s3.storage)
    output = s3.url(f"out-{to}")
    export(url, to, output, storage=s3.storage)
    export(url, to, output, storage=s3.storage)
    export(subset, to, tmp_path / "out")
    place = Place.open(output, s3.storage)
    assert {name: place.fs.cat_file(f"{place.root}/{name}") for name in place.sizes()} == contents(tmp_path / "out")


def test_pairs_that_do_not_fit_are_refused_with_ids_and_no_text(odd_subset: str, tmp_path: Path):
    with pytest.raises(DataError, match="2 of 16 pairs do not fit llama-factory") as refused:
        export(odd_subset, "llama-factory", tmp_path / "out")
    assert "an even number of prompt turns: 1 (two-users)" in str(refused.value)
    assert "an answer of several turns: 1 (three-turns)" in str(refused.value)
    assert "second words" not in str(refused.value)
    assert not contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("to", "left_out"),
    [
        ("trl", []),
        ("openrlhf", ["with-tools"]),
        ("llama-factory", ["two-users", "three-turns"]),
        ("axolotl", ["with-tools", "three-turns", "short"]),
        ("nemo-rl", ["with-tools"]),
    ],
)
def test_dropped_pairs_are_counted_and_named(odd_subset: str, to: str, left_out: list[str], tmp_path: Path):
    told = export(odd_subset, to, tmp_path / "out", drop_unfit=True)
    manifest = json.loads((tmp_path / "out" / "_SUCCESS.json").read_text())
    assert sorted(id_ for ids in manifest["extra"]["unfit_ids"].values() for id_ in ids) == sorted(left_out)
    assert sum(manifest["extra"]["num_unfit"].values()) == len(left_out)
    assert manifest["num_rows"] == 16 - len(left_out)
    assert all(id_ in told for id_ in left_out)
    if to != "trl":
        assert {row["id"] for row in json_rows(tmp_path / "out")}.isdisjoint(left_out)


def test_damaged_subset_is_refused_by_its_digest(tmp_path: Path):
    write_subset(str(tmp_path / "subset"), good_rows(), formats=("parquet",))
    path = tmp_path / "subset" / "parquet" / "train-00001-of-00003.parquet"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="train-00001-of-00003"):
        export(tmp_path / "subset", "openrlhf", tmp_path / "out")


def test_what_is_no_complete_subset_is_refused(subset: str, tmp_path: Path):
    with pytest.raises(SourceError, match="no dataset of kind subset"):
        export(tmp_path, "trl", tmp_path / "out")
    with pytest.raises(ConfigError, match="trl-kto"):
        export(subset, "dpo", tmp_path / "out")
    with pytest.raises(FingerprintError, match="kind 'subset'"):
        export(subset, "trl", subset)


def test_export_is_no_subset(subset: str, tmp_path: Path):
    export(subset, "trl", tmp_path / "out")
    with pytest.raises(FingerprintError, match="kind 'export', not subset"):
        export(tmp_path / "out", "trl", tmp_path / "again")


def test_columns_of_other_meaning_are_left_out_and_said(subset: str, tmp_path: Path):
    told = export(subset, "trl", tmp_path / "out")
    assert "no place for: label" in told  # a source column that TRL would take for KTO's
    loaded = load_from_disk(str(tmp_path / "out" / "hf"))["train"]
    assert {"id", "reward_chosen", "potential", "policy_logp_chosen"} <= {*loaded.column_names}
    assert "label" not in loaded.column_names
    export(subset, "trl", tmp_path / "slim", slim=True)
    slim = load_from_disk(str(tmp_path / "slim" / "hf"))["train"]
    assert slim.column_names == ["prompt", "chosen", "rejected", "ref_chosen_logps", "ref_rejected_logps"]


def test_lines_have_no_column_whose_type_a_reader_could_not_tell(tmp_path: Path):
    rows = good_rows()
    rows[-1]["rewards_all"] = [1.0, 2.0]
    write_subset(str(tmp_path / "subset"), rows)
    told = export(tmp_path / "subset", "openrlhf", tmp_path / "out")
    assert "without a value in every pair: rewards_all" in told
    assert {"label", "potential"} <= {*json_rows(tmp_path / "out")[0]}
    assert not any(value is None for row in json_rows(tmp_path / "out") for value in row.values())


def test_slim_subset_without_ids_and_scores_is_exported(tmp_path: Path):
    from tests.exports.conftest import SCHEMA

    slim = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in good_rows()]
    schema = SCHEMA.empty_table().select(["prompt", "chosen", "rejected"]).schema
    write_subset(str(tmp_path / "subset"), slim, schema=schema)
    for to, form in FORMATS.items():
        export(tmp_path / "subset", to, tmp_path / to)
        assert json.loads((tmp_path / to / "_SUCCESS.json").read_text())["num_rows"] == 12 * form.rows_per_pair


def test_command_writes_an_export_and_ends_with_2_where_pairs_do_not_fit(odd_subset: str, tmp_path: Path):
    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "pipeline.cli", "export", odd_subset, "--output", str(tmp_path / "out"), *argv]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    refused = call("--to", "nemo-rl")
    assert refused.returncode == 2
    assert "DataError: 1 of 16 pairs do not fit nemo-rl" in refused.stderr
    done = call("--to", "nemo-rl", "--drop-unfit", "--slim")
    assert done.returncode == 0
    assert "15 rows from 15 pairs" in done.stdout
    assert {*json_rows(tmp_path / "out")[0]} == {"context", "completions"}
