"""The same job on clusters: three nodes in one process tree, and a head started by hand that takes submitted jobs."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from pipeline.cli import main
from pipeline.config import Config, resolved
from pipeline.on_ray.shipment import prepare_job
from pipeline.steps.score import prepare_score, score
from tests.fixtures_storage import S3Server
from tests.steps.conftest import make_config, run_all, write_jsonl
from tests.steps.proxy import losing_answers
from tests.steps.test_score import scores_of, selected_ids
from tests.steps.test_secrets import canaries, leaks

ROOT = Path(__file__).parents[2]
LOGS = "logs-of-the-head"

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.s3]


@pytest.fixture(autouse=True)
def no_ray_of_other_tests() -> Iterator[None]:
    """These tests bring their own cluster; the one that other tests share comes up again when it is asked for."""
    ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture
def models(tiny_model_dir: Callable[..., Path], tiny_reward_dir: Path) -> dict:
    size = {"dtype": "float32", "num_cpus": 0.5}
    return {
        "policy": {"model": str(tiny_model_dir("llama", seed=1)), **size},
        "reward": {"backend": "classifier", "model": str(tiny_reward_dir), **size},
    }


def put(s3: S3Server, url: str, path: Path) -> str:
    from pipeline.data.place import Place

    place = Place.open(url, s3.storage)
    place.fs.pipe_file(place.root, path.read_bytes())
    return url


def on_s3(s3: S3Server, workdir: Path, pairs: list[dict], **sections):
    base = s3.url("job")
    source = put(s3, f"{base}/source/pairs.jsonl", write_jsonl(workdir / "pairs.jsonl", pairs))
    places = {"scored": f"{base}/scored", "output": {"path": f"{base}/subset"}}
    return make_config(workdir, source, storage=s3.storage.model_dump(mode="json"), **places, **sections)


def test_three_nodes_share_the_work_and_give_the_plain_result(
    tmp_path: Path, pairs: list[dict], models: dict, s3: S3Server
):
    plain = make_config(tmp_path / "plain", write_jsonl(tmp_path / "plain.jsonl", pairs), **models)
    run_all(plain)
    config = on_s3(s3, tmp_path, pairs, **models, run={"engine": "ray", "shard_rows": 4})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, logging_level="ERROR")
        summary, manifest = score(*prepare_score(config))
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        assert len(nodes) == 3
        assert summary.num_shards_done_now == len(manifest.files) == 15
        assert scores_of(config).equals(scores_of(plain))
    finally:
        ray.shutdown()
        cluster.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`ray start --head` with token authentication; ended by its pid. Yields the dashboard's address."""
    del s3
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary-token-" + os.urandom(16).hex())
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    dashboard = free_port()
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=6",
        f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
    ]  # fmt: skip
    log = tmp_path / "head.log"
    # Ray's sockets lie deep in the folder, and a socket's path may have 107 bytes: that of pytest is too long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, log.open("wb") as out:
        (tmp_path / LOGS).symlink_to(folder)
        command.append(f"--temp-dir={folder}")
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            wait_for(dashboard, process, log)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            kill_with_children(process)


def kill_with_children(process: "subprocess.Popen[bytes]") -> None:
    """Asked to end, Ray's head takes half a minute."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait(timeout=60)


def wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"no dashboard after 120 s: {log.read_text()[-2000:]}")


def on_head(head: str, *words: str | Path, **environment: str) -> tuple[int, str]:
    """A command of `alignpot`, in a process of its own: Ray reads RAY_AUTH_MODE once a process."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words), "--address", head]
    done = subprocess.run(
        command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def submitted_script(config: Path, head: str, checkout: Path) -> "subprocess.CompletedProcess[str]":
    """`ray job submit ... -- python jobs/run.py config.yaml` from a folder that holds what a checkout holds."""
    for part in ("pipeline", "jobs"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(config, checkout / "config.yaml")
    ray_command = str(Path(sys.executable).parent / "ray")
    command = [ray_command, "job", "submit", "--address", head, "--working-dir", ".", "--"]
    return subprocess.run(
        [*command, "python", "jobs/run.py", "config.yaml"], cwd=checkout, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(1200)  # six jobs, each with processes of its own: on a busy machine they take minutes
def test_submitted_job_writes_the_subset_and_passes_its_exit_code_on(
    tmp_path: Path,
    pairs: list[dict],
    models: dict,
    s3: S3Server,
    head: str,
):
    plain = make_config(tmp_path / "plain", write_jsonl(tmp_path / "plain.jsonl", pairs), **models)
    run_all(plain)
    config = on_s3(s3, tmp_path, pairs, **models, run={"engine": "ray", "shard_rows": 16, "placement": "colocated"})
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(resolved(config)))

    code, output = on_head(head, "submit", "run", path)
    assert code == 0, output
    assert "rows kept" in output
    from pipeline.data.place import Place

    place = Place.open(config.output.path, s3.storage)
    with place.fs.open(f"{place.root}/parquet/train-00000-of-00001.parquet") as file:
        assert sorted(pq.read_table(file)["id"].to_pylist()) == selected_ids(plain)
    check_that_the_job_is_found(path, head, config)

    path.write_text(yaml.safe_dump({**resolved(config), "tokens": {"max_length": 99}}))
    with losing_answers(head) as proxy:
        code, output = on_head(proxy.url, "submit", "run", path)
    assert code == 2, output
    assert "tokens.max_length" in output
    assert proxy.lost >= {"GET /api/jobs/", "POST /api/jobs/", "GET /api/jobs/ID", "GET /api/jobs/ID/logs"}
    assert proxy.answers["POST /api/jobs/", 200] == 1

    path.write_text(yaml.safe_dump(resolved(config)))
    script = submitted_script(path, head, tmp_path / "checkout")
    assert script.returncode == 0, script.stdout + script.stderr
    assert "(none now)" in script.stdout + script.stderr
    assert os.environ["RAY_AUTH_TOKEN"] not in output
    assert s3.secret_key not in output

    asked = urllib.request.Request(
        f"{head}/api/jobs/", headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        jobs = answer.read().decode()
    assert "alignpot_places" in jobs
    assert not [word for word in canaries() if word in jobs]
    assert leaks(tmp_path / LOGS, canaries()) == []

    code, output = on_head(head, "submit", "run", path, RAY_AUTH_TOKEN="canary-wrong-token")
    assert code == 2, output
    assert "RAY_AUTH_TOKEN" in output
    assert "canary" not in output
    assert "Traceback" not in output
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head}/api/jobs/", timeout=10)
    assert refused.value.code == 401
    code, output = on_head(head, "doctor", RAY_AUTH_TOKEN="canary-wrong-token")
    assert code == 1, output
    assert f"bad   ray dashboard: Ray at {head} wants a token" in output
    assert "canary" not in output


def check_that_the_job_is_found(path: Path, head: str, config: Config) -> None:
    """By its config and by its id, when it is complete, and while another one runs and is stopped."""
    other = ["--set", f"scored={config.scored}-other"]
    other_id = prepare_job("score", path, other[1:]).submission_id
    calls: list[tuple[int | None, list[str], str]] = [
        (0, ["status", str(path)], f"{config.scored}: complete"),
        (0, ["status", str(path)], f"{config.output.path}: complete"),
        (0, ["logs", str(path)], "rows kept"),
        (0, ["stop", str(path)], "has ended already: SUCCEEDED"),
        (0, ["submit", "score", str(path), *other, "--no-wait"], f"submitted {other_id}"),
        (0, ["status", str(path), *other], f"job {other_id}: "),
        (0, ["stop", other_id], f"{other_id}: STOPPED"),
        (1, ["status", str(path), *other], f"{other_id}: STOPPED"),
        (None, ["logs", other_id, "--follow"], f"{other_id}: STOPPED"),
        (2, ["status", "alignpot-run-000000000000"], "knows no job"),
        (0, ["submit", "doctor", str(path)], "ok    ray cluster"),
        (0, ["doctor"], "ok    ray dashboard"),
    ]
    script = f"""
import contextlib, io, json, sys
from pipeline.cli import main
ended = []
for words in json.load(sys.stdin):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            main([*words, "--address", {head!r}])
        except SystemExit as end:
            code = end.code
    ended.append((code, text.getvalue()))
print(json.dumps(ended))
"""
    words = json.dumps([words for _, words, _ in calls])
    done = subprocess.run(
        [sys.executable, "-c", script], input=words, cwd=ROOT, capture_output=True, text=True, check=True
    )
    for (code, words, says), (ended, text) in zip(calls, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert says in text, (words, text)
        assert ended == code if code is not None else ended, (words, text)
    assert os.environ["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


@pytest.mark.parametrize("job", ["rn", "train"])
def test_unknown_job_is_refused(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "config.yaml"
    path.write_text("scored: s3://bucket/scored\n")
    with pytest.raises(SystemExit) as end:
        main(["submit", job, str(path), "--address", "http://127.0.0.1:1"])
    assert end.value.code == 2
    assert "score_pairs" in capsys.readouterr().err
