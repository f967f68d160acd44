"""`alignpot doctor` names each planted fault in its check, says what to do, and runs every other check."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import Storage
from pipeline.demo.run import PAIRS_FILE
from pipeline.doctor import data, machine
from pipeline.doctor.check import Check, Finding, ok
from tests.data.fault_proxy import CARELESS, SLOW_CLOCK, faulty
from tests.fixtures_storage import S3Server
from tests.hub_server import Hub

CANARY = "canary-0f51"


class Report(NamedTuple):
    code: int
    findings: dict[str, Finding]

    @property
    def bad(self) -> set[str]:
        return {name for name, found in self.findings.items() if found.state == "bad"}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Nothing is wrong with it."""
    path = tmp_path / "config.yaml"
    sections = {
        "source": {"path": str(PAIRS_FILE)},
        "reward": {"backend": "columns"},
        "metric": {"name": "explicit"},
        "scored": str(tmp_path / "out" / "scored"),
        "select": {"k": 5},
        "output": {"path": str(tmp_path / "out" / "subset")},
        "run": {"engine": "plain"},
    }
    path.write_text(yaml.safe_dump(sections))
    return path


def report(config: Path, *settings: str) -> Report:
    options = [word for setting in settings for word in ("--set", setting)]
    done = CliRunner().invoke(app, ["doctor", str(config), *options, "--json"], catch_exceptions=False)
    assert CANARY not in done.output
    lines = json.loads(done.stdout)
    return Report(done.exit_code, {each["check"]: Finding(each["state"], each["says"]) for each in lines})


def test_healthy_config_passes_leaves_no_trace_and_loads_no_heavy_library(config: Path):
    script = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print(sorted({'ray', 'torch', 'transformers'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script, "doctor", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *lines, heavy = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert heavy == "[]"
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}
    assert {line[6:].split(":")[0] for line in lines} == {
        "config", "versions", "memory", "scratch", "source", "store output.path", "store scored",
    }  # fmt: skip
    assert [*config.parent.iterdir()] == [config]


def test_config_of_rewards_alone(tmp_path: Path):
    path, rows = tmp_path / "reward.yaml", tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Why?", "response": "So."}) + "\n")
    reward = {"backend": "function", "function": "tests.rewards.functions:length"}
    path.write_text(
        yaml.safe_dump({"source": {"path": str(rows)}, "reward": reward, "rewarded": str(tmp_path / "out")})
    )
    found = report(path)
    assert (found.code, found.bad) == (0, set())
    assert {"source", "store rewarded"} <= {*found.findings}
    rows.write_text(json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "No."}) + "\n")
    assert "alignpot score" in report(path).findings["source"].says


def test_wrong_key_is_told_and_the_machine_is_looked_at_all_the_same(config: Path):
    code, found = report(config, "select.fractoin=0.1")
    assert code == 2
    assert "fraction" in found["config"].says
    assert found["versions"].state == "ok"
    assert "source" not in found


@pytest.mark.parametrize(
    ("check", "settings", "says"),
    [
        ("source", ["source.path={tmp}/nowhere"], "not there"),
        ("source", ["source.path={tmp}/config.yaml"], "config.yaml"),
        ("source", ["source.format=strings"], "alignpot inspect"),
        ("scored", ["source=null", "scored={tmp}/nowhere"], "alignpot score"),
        ("store output.path", ["output.path={tmp}/config.yaml/subset"], "not usable as a path"),
        ("store scored", ["scored=/proc/alignpot/scored"], "/proc/alignpot"),
        ("model reward", ["reward={{backend: classifier, model: {tmp}/nowhere}}"], "does not exist"),
        ("model reward", ["reward={{backend: classifier, model: org/no-such-model}}"], "not in the local cache"),
        (
            "gpus",
            ["reward={{backend: classifier, model: {tmp}/nowhere, num_gpus: 4096}}", "run.engine=ray"],
            "num_gpus",
        ),
        ("ray cluster", ["run={{engine: ray, address: '127.0.0.1:1'}}"], "nothing answers"),
        ("ray cluster", ["run={{engine: ray, address: nonsense}}"], "no address"),
    ],
)
def test_planted_fault_is_named(check: str, settings: list[str], says: str, config: Path):
    found = report(config, *(setting.format(tmp=config.parent) for setting in settings))
    assert found.code == 1
    assert check in found.bad
    assert says in found.findings[check].says
    assert found.findings["versions"].state == "ok"


def test_address_of_the_environment_is_checked_and_must_carry_no_token(config: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", f"user:{CANARY}@127.0.0.1:1")
    found = report(config, "run.engine=ray")
    assert found.bad == {"ray cluster"}
    assert "RAY_AUTH_TOKEN" in found.findings["ray cluster"].says
    assert report(config, "run.engine=plain").code == 0


@pytest.mark.parametrize(
    ("environment", "state", "says"),
    [
        ({}, "warn", "RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "token"}, "bad", "RAY_AUTH_TOKEN_PATH"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": CANARY}, "ok", "there is a token"),
    ],
)
def test_token_mode_of_a_cluster(
    environment: dict[str, str], state: str, says: str, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = report(config, "run.engine=ray", "run.address=127.0.0.1:1").findings["ray token"]
    assert found.state == state
    assert says in found.says


def test_library_out_of_range_and_missing_extra_are_named(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    planted = tmp_path / "site" / "numpy-1.26.4.dist-info"
    planted.mkdir(parents=True)
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.26.4\n")
    monkeypatch.syspath_prepend(str(planted.parent))
    assert "numpy 1.26.4 (wanted >=2.0). Run: pip install 'numpy>=2.0'" in report(config).findings["versions"].says
    about = tmp_path / "site" / "ours-1.dist-info"
    about.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: ours", "Version: 1", "Requires-Python: {}"]
    rest = ["Requires-Dist: no-such-library>=3; extra == 'vllm'", "Provides-Extra: vllm"]
    (about / "METADATA").write_text("\n".join([lines[0], *lines[1:3], "Requires-Python: >=3.11", *rest]))
    assert machine.versions([], "ours").state == "ok"
    assert "no-such-library is missing (wanted >=3)" in machine.versions(["vllm"], "ours").says
    (about / "METADATA").write_text("\n".join([*lines[:3], "Requires-Python: <3"]))
    assert "wanted <3" in machine.versions([], "ours").says
    assert machine.versions([], "not-installed").state == "warn"


def test_disk_with_too_little_room_is_named(tmp_path: Path):
    assert "TMPDIR" in machine.scratch(least_free=2**62).says
    found = data.store(str(tmp_path / "out"), Storage(), least_free=2**62)
    assert found.state == "bad"
    assert "larger disk" in found.says


def test_weights_that_do_not_fit_into_memory_are_named(config: Path):
    model = config.parent / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    save_file({"weight": np.zeros(1000, np.float32)}, model / "model.safetensors")
    reward = f"reward={{backend: classifier, model: {model}, num_gpus: 0, replicas: %d}}"
    assert report(config, reward % 1).code == 0
    found = report(config, reward % 10**9)
    assert found.bad == {"memory"}
    assert "replicas" in found.findings["memory"].says


@pytest.mark.slow
@pytest.mark.s3
def test_faults_of_a_store_are_named(config: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch):
    base = s3.url("doctor")

    def on_s3(endpoint_url: str) -> Report:
        storage = f"storage={{endpoint_url: '{endpoint_url}', region: us-east-1}}"
        return report(config, f"scored={base}/scored", f"output.path={base}/subset", storage)

    healthy = on_s3(s3.endpoint_url)
    assert healthy.code == 0, healthy
    assert "put-if-absent holds" in healthy.findings["store scored"].says
    assert data.Place.open(base, s3.storage).sizes() == {}

    stores = {"store scored", "store output.path"}
    with faulty(s3.endpoint_url, lambda _, path: SLOW_CLOCK if path == "/" else CARELESS) as endpoint_url:
        found = on_s3(endpoint_url)
    assert found.bad == stores | {"clock"}
    assert "conditional writes" in found.findings["store scored"].says
    assert "s ahead of" in found.findings["clock"].says

    found = on_s3("http://127.0.0.1:1")
    assert found.bad == stores
    assert "cannot be reached" in found.findings["store scored"].says
    assert found.findings["clock"].state == "warn"

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    found = on_s3(s3.endpoint_url)
    assert found.bad == stores
    assert "AWS_ACCESS_KEY_ID" in found.findings["store scored"].says
    assert s3.secret_key not in str(found)


def test_token_of_the_hub(config: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    target = "output.hub=org/subset"
    assert report(config, target).findings["hub token"].state == "ok"
    monkeypatch.setenv("HF_TOKEN", CANARY)
    assert report(config, target).bad == {"hub token"}
    monkeypatch.delenv("HF_TOKEN")
    found = report(config, target)
    assert found.bad == {"hub token"}
    assert "HF_TOKEN" in found.findings["hub token"].says
    hub.add("org/prefs", {"pairs.jsonl": PAIRS_FILE.read_bytes()})
    found = report(config, "source.path=hf://datasets/org/prefs").findings
    assert found["hub token"].state == "warn"
    assert "public" in found["hub token"].says


def test_table(config: Path, tmp_path: Path):
    found = report(config, f"output.table={{kind: delta, path: {tmp_path / 'table'}}}")
    assert found.bad == set()
    assert found.findings["store output.table.path"].state == found.findings["table"].state == "ok"
    assert not (tmp_path / "table").exists()
    found = report(config, "output.table={kind: iceberg, path: nowhere/prefs.pairs}")
    assert found.bad == {"table"}
    assert "PYICEBERG_CATALOG__NOWHERE__URI" in found.findings["table"].says


def test_a_check_that_hangs_or_breaks_is_bad_and_ends():
    def breaks() -> Finding:
        raise ZeroDivisionError(CANARY)

    hanging = Check(name="hangs", look=lambda: time.sleep(60) or ok(""), limit_s=0.05).run()
    assert hanging.state == "bad"
    assert "no answer within 0.05 s" in hanging.says
    broken = Check(name="breaks", look=breaks).run()
    assert broken.state == "bad"
    assert "ZeroDivisionError" in broken.says
    assert CANARY not in broken.says
    full = Check(name="here", look=lambda: os.posix_fallocate(-1, 0, 1) or ok("")).run()
    assert full.state == "bad"
