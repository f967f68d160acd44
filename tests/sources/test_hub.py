"""A dataset of the Hugging Face Hub is read at one commit, with the token of the environment, by any process."""

import pickle
from pathlib import Path

import pytest
import ray

from pipeline import read_pairs
from pipeline.config import Source, Storage, parse_config
from pipeline.data.place import Place
from pipeline.errors import ConfigError, FingerprintError, StorageError, TemporaryError
from pipeline.sources.open import open_source
from pipeline.sources.shards import plan_shards
from pipeline.steps.score import prepare_score, score
from tests.hub_server import TOKEN, Hub
from tests.sources import layouts as to

NAME = "org/prefs"
CARD = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/train-*}\n---\n"
ROWS = [
    {**to.as_strings(to.pair(prompt=f"Question {n}?")), "reward_chosen": float(n), "reward_rejected": 0.5}
    for n in range(20)
]


def files_of(folder: Path, rows) -> dict[str, bytes]:
    to.write_parquet(folder / "rows.parquet", rows)
    data = (folder / "rows.parquet").read_bytes()
    return {"README.md": CARD, "data/train-00000-of-00001.parquet": data, "data/test-00000-of-00001.parquet": b"no"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return files_of(tmp_path, ROWS)


def config_of(path: str, folder: Path):
    return parse_config({
        "source": {"path": path},
        "reward": {"backend": "columns"},
        "metric": {"name": "explicit"},
        "scored": str(folder / "scored"),
        "run": {"engine": "plain"},
    })  # fmt: skip


@pytest.mark.parametrize("path", [f"hf://datasets/{NAME}", NAME, f"{NAME}@v1", f"hf://datasets/{NAME}@v1/data"])
def test_read_at_the_commit_of_its_revision(hub: Hub, files, path: str):
    first = hub.add(NAME, files)
    hub.repos[NAME].tags["v1"] = first
    place = Place.of_source(path, Storage())
    hub.add(NAME, {**files, "data/train-00000-of-00001.parquet": b"another file"})
    flags = {"rewards": False, "policy_logps": False, "reference_logps": False}
    reader, found = open_source(place.fs, place.root, Source(path=path), **flags)
    assert str(place).startswith(f"hf://datasets/{NAME}@{first}")
    assert place.commit == first
    sent = pickle.dumps(reader)
    assert TOKEN.encode() not in sent
    asked = len(hub.requests)
    tables = [pickle.loads(sent).read(shard) for shard in plan_shards(found, 7)]
    assert sum(table.num_rows for table in tables) == 20
    assert all(f"/resolve/{first}/" in request for request in hub.requests[asked:])  # nothing is looked up again


def test_the_commit_is_in_the_fingerprint_and_the_split_in_the_manifest(hub: Hub, files, tmp_path: Path):
    first = hub.add(NAME, files)
    config = config_of(NAME, tmp_path)
    _, manifest = score(*prepare_score(config))
    assert manifest.fingerprint["source"]["commit"] == first
    assert next(iter(manifest.fingerprint["source"]["files"].values())).startswith("checksum:sha256:")
    source = manifest.config["source"]
    assert (source["path"], source["split"], source["config"]) == (f"hf://datasets/{NAME}@{first}", "train", "default")
    assert TOKEN not in (tmp_path / "scored" / "_SUCCESS.json").read_text()
    hub.add(NAME, files_of(tmp_path, ROWS[:10]))
    with pytest.raises(FingerprintError, match=r"source\.commit"):
        prepare_score(config)
    assert score(*prepare_score(config_of(f"{NAME}@{first}", tmp_path)))[1].num_rows == 20


def test_a_local_folder_of_that_name_comes_first(hub: Hub, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.add(NAME, files)
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    to.write_jsonl(tmp_path / NAME / "a.jsonl", ROWS[:3])
    assert len(read_pairs(NAME).to_arrow()) == 3
    assert not hub.requests


@pytest.mark.parametrize(
    ("path", "error", "told"),
    [
        (
            "org/none",
            StorageError,
            r"org/none is no local file or folder\. .*RepositoryNotFoundError, HTTP 404.*HF_TOKEN",
        ),
        (f"hf://datasets/{NAME}@none", StorageError, "RevisionNotFoundError, HTTP 404"),
        (f"hf://datasets/{NAME}/none", StorageError, "not there"),
        ("prefs/none.jsonl", StorageError, r"/prefs/none\.jsonl: not there"),
        ("hf://org/model", ConfigError, r"wanted hf://datasets/ORG/NAME"),
    ],
)
def test_what_is_not_on_the_hub_is_said(hub: Hub, files, path: str, error, told: str):
    hub.add(NAME, files)
    with pytest.raises(error, match=told):
        read_pairs(path)


def test_a_wrong_token_and_a_hub_that_is_away_are_told_apart(hub: Hub, files, monkeypatch: pytest.MonkeyPatch):
    hub.add(NAME, files)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(StorageError, match="HTTP 401") as caught:
        read_pairs(NAME)
    assert "hf_another" not in str(caught.value)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TemporaryError, match="cannot be reached"):
        read_pairs(NAME)


def test_only_a_source_can_lie_on_the_hub():
    with pytest.raises(ConfigError, match=r"only a source can lie on the hub\. Use output\.hub"):
        Place.open(f"hf://datasets/{NAME}", Storage())


@pytest.mark.soak
@pytest.mark.ray
def test_tasks_of_ray_read_the_same_commit(hub: Hub, files, tmp_path: Path):
    ray.shutdown()  # workers of a Ray that is up already know neither the hub of this test nor that it may be asked
    first = hub.add(NAME, files)
    config = config_of(NAME, tmp_path)
    on_ray = config.model_copy(update={"run": config.run.model_copy(update={"engine": "ray", "shard_rows": 4})})
    prepared = prepare_score(on_ray)
    hub.add(NAME, files_of(tmp_path, ROWS[:10]))
    _, manifest = score(*prepared)
    assert (manifest.num_kept, manifest.fingerprint["source"]["commit"]) == (20, first)
