"""Push to a hub on loopback: one commit whatever happens, nothing twice, and read back as the same pairs."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import push, read_pairs, score, select
from pipeline.commands import select_only
from pipeline.config import Storage, parse_config
from pipeline.data.dataset import Dataset
from pipeline.data.files import REPORT_FILE
from pipeline.data.manifest import SUBSET
from pipeline.data.place import Place
from pipeline.data.sealed import read_sealed
from pipeline.errors import StorageError, TemporaryError
from pipeline.exports.card import card
from tests.hub_server import TOKEN, Hub

NAME = "org/prefs"
COLUMNS = {"reward": "columns", "policy": "columns"}


def rows(num_rows: int) -> list[dict]:
    return [
        {
            "prompt": f"Question {i}?",
            "chosen": f"good {i}",
            "rejected": f"bad {i}",
            "reward_chosen": float(i % 7),
            "reward_rejected": 1.0,
            "policy_logp_chosen": -10.0 - i % 5,
            "policy_logp_rejected": -9.0 - i % 3,
            "num_tokens_chosen": 5,
            "num_tokens_rejected": 4,
        }
        for i in range(num_rows)
    ]


def subset_of(folder: Path, num_rows: int = 40, **output) -> Path:
    select(score(rows(num_rows), **COLUMNS), fraction=0.4).write(folder, **output)
    return folder


@pytest.fixture(scope="module")
def subset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return subset_of(tmp_path_factory.mktemp("subset") / "subset")


def test_pushed_once_and_read_back(hub: Hub, subset: Path, tmp_path: Path):
    assert push(subset, NAME).startswith("pushed to the hub: 16 pairs")
    repo = hub.repos[NAME]
    assert repo.private
    assert len(repo.commits) == 2  # the first one is of the hub
    assert {*repo.files} == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet"}
    ours = pq.read_table(subset / "parquet" / "train-00000-of-00001.parquet")
    found = read_pairs(NAME, id_column="id").to_arrow().select(["id", "prompt", "chosen", "rejected"])
    assert found.to_pylist() == ours.select(found.column_names).to_pylist()
    assert push(subset, NAME).startswith("already on the hub")
    repo.commit({**repo.files, "README.md": repo.files["README.md"] + b"A word of the owner.\n"})
    assert push(subset, NAME).startswith("already on the hub")
    again = subset_of(tmp_path / "again", formats=["hf"], rows_per_file=5)
    assert push(again, NAME).startswith("already on the hub")
    assert len(repo.commits) == 3


def test_card_says_what_was_selected_and_how_to_load_it(hub: Hub, subset: Path):
    push(subset, NAME)
    text = hub.repos[NAME].files["README.md"].decode()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert header["size_categories"] == ["n<1K"]
    for said in (
        "16 of 40",
        "| weight | 1.0 |",
        "margin_explicit mean",
        "simpo",
        f'load_dataset("{NAME}", split="train")',
    ):
        assert said in text
    assert TOKEN not in text
    assert "/tmp" not in text


def test_rows_held_out_are_a_split_on_the_hub(hub: Hub, tmp_path: Path):
    chosen = select(score(rows(80), **COLUMNS), fraction=0.9, split={"held": 0.3})
    chosen.write(tmp_path / "subset", hub=NAME)
    files = hub.repos[NAME].files
    splits = chosen.to_datasets()
    assert [*splits] == ["held", "train"]
    assert {path for path in files if "data/" in path} == {f"data/{name}-00000-of-00001.parquet" for name in splits}
    header = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    paths = [{"split": name, "path": f"data/{name}-*"} for name in ("train", "held")]
    assert header["configs"][0]["data_files"] == paths
    assert f"| held out | {len(splits['held'])} as `held` |" in files["README.md"].decode()
    for split in splits:
        assert read_pairs(NAME, id_column="id", split=split).to_arrow()["id"].to_pylist() == splits[split]["id"][:]
    assert read_pairs(NAME).to_arrow().num_rows == len(splits["train"])
    frame = chosen.to_pandas()
    assert frame.groupby("split")["id"].apply(list).to_dict() == {name: splits[name]["id"][:] for name in splits}


def test_card_names_models_and_of_private_paths_the_last_part_alone(subset: Path):
    place = Place.open(str(subset), Storage())
    dataset = Dataset.open(place, SUBSET)
    manifest = dataset.manifest
    scored_by = {"policy": {"name": "org/policy", "revision": "c" * 40}, "reward": {"weights": "d" * 64}}
    source = {"path": "s3://private-bucket/team/prefs/", "split": "train"}
    made_from = {"source": source, "reward": {"model": "/home/me/models/rm|x"}}
    extra = {**manifest.extra, "scored_by": scored_by, "made_from": made_from}
    told = replace(dataset, manifest=replace(manifest, extra=extra))
    text = card(NAME, told, read_sealed(place / REPORT_FILE), "mark")
    for said in ("| `org/policy` (`cccccccccccc`) |", "| `rm\\|x` (`dddddddddddd`) |", "| `prefs`, split `train` |"):
        assert said in text
    assert "private-bucket" not in text
    assert "/home" not in text


def test_a_smaller_subset_replaces_all_files_of_the_former_one(hub: Hub, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("pipeline.exports.hub._ROWS_PER_FILE", 10)
    monkeypatch.setattr("pipeline.exports.hub._ROWS_PER_GROUP", 5)
    subset_of(tmp_path / "large", hub=NAME)
    assert "data/train-00001-of-00002.parquet" in hub.repos[NAME].files
    push(subset_of(tmp_path / "small", num_rows=20), NAME)
    data = [path for path in hub.repos[NAME].files if path.startswith("data/")]
    assert data == ["data/train-00000-of-00001.parquet"]
    assert read_pairs(NAME).to_arrow().num_rows == 8


def test_a_dataset_of_others_is_not_touched(hub: Hub, subset: Path):
    hub.add(NAME, {"README.md": b"---\nlicense: mit\n---\n", "data/train-00000-of-00001.parquet": b"rows of others"})
    with pytest.raises(StorageError, match="holds a dataset that alignpot did not push"):
        push(subset, NAME)
    assert len(hub.repos[NAME].commits) == 1


def test_a_commit_of_others_in_between_is_kept(hub: Hub, subset: Path):
    def others_first(request: str) -> None:
        if "/commit/" in request and "LICENSE" not in hub.repos[NAME].files:
            hub.repos[NAME].commit({**hub.repos[NAME].files, "LICENSE": b"MIT"})

    hub.before = others_first
    assert push(subset, NAME).startswith("pushed")
    assert {"LICENSE", "README.md"} <= {*hub.repos[NAME].files}


def test_after_a_busy_hub_the_rerun_makes_one_commit(hub: Hub, subset: Path):
    hub.before = lambda request: 503 if "/commit/" in request else None
    with pytest.raises(TemporaryError, match="HTTP 503") as caught:
        push(subset, NAME)
    assert caught.value.exit_code == 75
    hub.before = lambda request: None
    push(subset, NAME)
    assert len(hub.repos[NAME].commits) == 2


def test_killed_between_upload_and_commit_the_rerun_makes_one_commit(hub: Hub, subset: Path):
    command = [sys.executable, "-m", "pipeline.cli", "push", str(subset), NAME]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )

    def killed(request: str) -> int | None:
        if "/commit/" not in request:
            return None
        process.send_signal(signal.SIGKILL)
        return 503

    hub.before = killed
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert hub.blobs
    assert len(hub.repos[NAME].commits) == 1
    hub.before = lambda request: None
    assert push(subset, NAME).startswith("pushed to the hub")
    assert len(hub.repos[NAME].commits) == 2
    assert TOKEN not in errors


def test_output_hub_pushes_each_subset_of_a_sweep_and_asks_for_the_token_first(hub: Hub, tmp_path: Path, monkeypatch):
    score(rows(40), **COLUMNS, path=tmp_path / "scored")
    sweep = [{"name": f"best-{k}", "select": {"k": k}} for k in (3, 5)]
    output = {"path": str(tmp_path / "out"), "hub": NAME}
    config = parse_config({"scored": str(tmp_path / "scored"), "select": {"k": 1}, "output": output, "sweep": sweep})
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(StorageError, match="no token"):
        list(select_only(config))
    assert not (tmp_path / "out" / "best-3" / "_SUCCESS.json").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    told = "\n".join(select_only(config))
    assert told.count("pushed to the hub") == 2
    assert {*hub.repos} == {f"{NAME}-best-3", f"{NAME}-best-5"}


@pytest.mark.parametrize(("token", "told"), [("", "no token"), ("hf_another", "hub refused .*HTTP 401")])
def test_without_a_right_token_nothing_is_done(hub: Hub, subset: Path, token: str, told: str, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(StorageError, match=told) as caught:
        push(subset, NAME)
    assert "hf_another" not in str(caught.value)
    assert not hub.repos
