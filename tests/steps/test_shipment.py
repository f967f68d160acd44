"""What travels with a submitted job, and what every command for jobs says before it reaches a cluster."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pipeline
from pipeline.config import load_any, load_config
from pipeline.errors import ConfigError
from pipeline.on_ray import shipment
from pipeline.on_ray.shipment import config_digest, is_of, prepare_job
from tests.steps import scored_data
from tests.steps.conftest import Ended

PACKAGE = Path(pipeline.__file__).parent
JUNK = (
    ".env", ".git/config", ".ipynb_checkpoints/a.py", "__pycache__/api.cpython-311.pyc", "demo/models/config.json",
    "notes.ipynb", "scored.parquet", "weights.safetensors", "data/.cache.json",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A selection of a small scored dataset."""
    scored = scored_data.write_scored(tmp_path / "scored", pipeline.config.Storage(), scored_data.scored_table(), 200)
    path = tmp_path / "select.yaml"
    path.write_text(yaml.safe_dump(scored_data.sections(scored, tmp_path / "subset", select={"k": 7})))
    return path


@pytest.fixture
def untidy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as in a checkout where people have worked."""
    copy = tmp_path / "checkout" / "pipeline"
    shutil.copytree(PACKAGE, copy)
    for name in JUNK:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("x")
    monkeypatch.setattr(shipment, "_PACKAGE", copy)


def test_only_modules_and_config_travel_and_they_do_the_job(config: Path, untidy: None, tmp_path: Path):
    job = prepare_job("select", config, ())
    folder = tmp_path / "job"
    folder.mkdir()
    assert job.write(folder) == {"working_dir": str(folder)}
    sent = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    kept_here = {".md", ".png", ".typed", ".pyc"}
    package = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in kept_here}
    modules = {f"pipeline/{path.relative_to(PACKAGE)}" for path in package}
    assert sent == {name for name in modules if not name.startswith("pipeline/demo/")} | {"config.yaml"}

    # Without the installation, and not from the folder where it was sent.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python = {"python": sys.executable}
    words = [python.get(word, word) for word in job.entrypoint.split()]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "subset" / "_SUCCESS.json").exists()


def test_templates_travel_in_the_config(config: Path, tmp_path: Path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}: ä\n{% endfor %}")
    job = prepare_job("select", config, [f"tokens.chat_template={template}"])
    (tmp_path / "job").mkdir()
    job.write(tmp_path / "job")
    template.unlink()
    assert load_config(tmp_path / "job" / "config.yaml") == job.config


def test_relative_paths_are_refused_also_those_of_tables(tmp_path: Path):
    def prepare(path: str):
        sections = {"source": {"path": path}, "reward": {"backend": "columns"}, "metric": {"name": "explicit"}}
        (tmp_path / "score.yaml").write_text(yaml.safe_dump({**sections, "scored": "s3://bucket/scored"}))
        return prepare_job("score", tmp_path / "score.yaml", ())

    for path in ("prefs", "delta://prefs@3", "lance://./prefs.lance"):
        with pytest.raises(ConfigError, match=r"source\.path: a relative path cannot be submitted"):
            prepare(path)
    for path in ("delta:///data/prefs@3", "lance://s3://bucket/prefs", "iceberg://catalog/prefs.pairs"):
        assert prepare(path)


def test_dry_run_lists_what_would_be_sent(config: Path, untidy: None, command):
    ended: Ended = command("submit", "select", config, "--dry-run")
    assert ended.code == 0
    sizes = {name: int(size.replace(",", "")) for size, name in re.findall(r"^ +([\d,]+)  (\S+)$", ended.out, re.M)}
    assert sizes["pipeline/cli.py"] == (PACKAGE / "cli.py").stat().st_size
    assert {"config.yaml", "pipeline/selfplay/templates/deepen.txt"} <= sizes.keys()
    assert not [name for name in sizes if any(junk in name for junk in JUNK)]
    submission_id = re.search(r"^id +(\S+)$", ended.out, re.M)[1]
    digest = submission_id.rpartition("-")[2]
    assert "python -m pipeline.cli select config.yaml" in ended.out
    assert f"{len(sizes)} files, {sum(sizes.values()):,} bytes" in ended.out
    assert is_of(submission_id, digest)
    assert is_of(f"alignpot-self-play-{digest}-12", digest)
    assert not is_of(f"{submission_id}0", digest)
    other = command("submit", "select", config, "--set", "select.k=8", "--dry-run").out
    assert digest not in other


def test_rewards_alone_are_a_job_too(tmp_path: Path, command):
    path = tmp_path / "reward.yaml"
    sections = {"source": {"path": "s3://bucket/rows"}, "reward": {"backend": "classifier", "model": "org/rm"}}
    path.write_text(yaml.safe_dump({**sections, "rewarded": "s3://bucket/rewarded"}))
    ended: Ended = command("submit", "reward", path, "--dry-run")
    assert "python -m pipeline.cli reward config.yaml" in ended.out
    assert json.loads(prepare_job("reward", path, ()).metadata["alignpot_places"]) == ["s3://bucket/rewarded"]
    [(_, submission_id)] = re.findall(r"^(id +)(\S+)$", ended.out, re.M)
    assert is_of(submission_id, config_digest(load_any(path)))
    with pytest.raises(ConfigError, match="rewarded: a relative path"):
        prepare_job("reward", path, ["rewarded=here"])


@pytest.mark.parametrize("name", ["submit", "status", "logs", "stop"])
def test_a_head_that_is_not_there_is_temporary_and_a_wrong_call_is_not(name: str, config: Path, command):
    words = [name, *(["run"] if name == "submit" else []), config]
    gone = command(*words, "--address", "http://127.0.0.1:1")
    assert gone.code == 75
    assert "no Ray dashboard answers" in gone.err
    for extra, says in (
        ((), "--address is missing"),
        (("--address", "127.0.0.1:1"), "no dashboard"),
        (("--address", "http://me:canary@head:8265"), "RAY_AUTH_TOKEN"),
        (("--address", "http://127.0.0.1:1", "--set", "select.kk=1"), "select.kk"),
    ):
        wrong = command(*words, *extra)
        assert wrong.code == 2
        assert says in wrong.err
        assert "canary" not in wrong.err


def test_overrides_are_refused_for_an_id(command):
    ended = command("status", "alignpot-run-0123456789ab", "--set", "select.k=1", "--address", "http://127.0.0.1:1")
    assert ended.code == 2
    assert "--set changes a config" in ended.err
