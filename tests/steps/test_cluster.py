"""Jobs submitted to a head that was started by hand, and the nodes that joined it: they end well, and are found."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import yaml

from pipeline.cli import main
from pipeline.config import Config, Storage, resolved
from pipeline.errors import TemporaryError
from pipeline.on_ray.shipment import prepare_job
from tests.data.fault_proxy import BUSY, RESET, faulty
from tests.fixtures_storage import S3Server
from tests.soak import rows_in
from tests.steps.conftest import make_config, run_all, write_jsonl
from tests.steps.proxy import losing_answers
from tests.steps.ray_start import RAY, RayCluster, ray_cluster
from tests.steps.test_score import scores_of, selected_ids
from tests.steps.test_secrets import canaries, leaks

ROOT = Path(__file__).parents[2]

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


def on_s3(s3: S3Server, workdir: Path, pairs: list[dict], storage: Storage, **sections):
    base = s3.url("job")
    source = put(s3, f"{base}/source/pairs.jsonl", write_jsonl(workdir / "pairs.jsonl", pairs))
    places = {"scored": f"{base}/scored", "output": {"path": f"{base}/subset"}}
    return make_config(workdir, source, storage=storage.model_dump(mode="json"), **places, **sections)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Iterator[RayCluster]:
    """With token authentication; its workers inherit the credentials of the store."""
    del s3
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "canary-token-" + os.urandom(16).hex())
        patch.setenv("RAY_health_check_period_ms", "1000")  # a dead node is noticed after 5 of them
        patch.setenv("PYTHONPATH", str(ROOT))  # a function that gives rewards is importable on every node
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        with ray_cluster(tmp_path_factory.mktemp("cluster"), num_nodes=2, num_cpus=2) as cluster:
            yield cluster


class Faults:
    """A proxy before a store that fails some requests. As parts are written, it kills a node and then two workers."""

    def __init__(self, cluster: RayCluster) -> None:
        self.is_on = True
        self.kills = [cluster.kill_node, cluster.kill_worker, cluster.kill_worker]
        self._num_parts, self._next_kill = 0, 6
        self._chance, self._lock = random.Random(0), threading.Lock()

    def at_request(self, method: str, path: str) -> str | None:
        with self._lock:
            self._num_parts += method == "PUT" and "/parts/" in path
            if self.kills and self._num_parts >= self._next_kill and self.kills[0]():
                del self.kills[0]
                self._next_kill = self._num_parts + 10
            drawn = self._chance.random()
        return (BUSY if drawn < 0.05 else RESET if drawn < 0.06 else None) if self.is_on else None


@pytest.mark.timeout(1200)
def test_submitted_job_outlives_a_node_workers_and_a_store_that_fails(
    tmp_path: Path, pairs: list[dict], s3: S3Server, cluster: RayCluster
):
    """Workers are killed so often that models, which take a worker 10 seconds to load, are left to the next test."""
    rows = [{**pair, "id": f"{pair['id']}-{copy}"} for copy in range(4) for pair in pairs]
    reward = {"backend": "function", "function": "tests.rewards.functions:length", "num_cpus": 0.5, "replicas": 2}
    explicit = {"reward": reward, "metric": {"name": "explicit"}}
    plain = make_config(tmp_path / "plain", write_jsonl(tmp_path / "plain.jsonl", rows), **explicit)
    run_all(plain)
    faults = Faults(cluster)
    with faulty(s3.endpoint_url, faults.at_request) as endpoint_url:
        storage = s3.storage.model_copy(update={"endpoint_url": endpoint_url, "max_attempts": 10})
        config = on_s3(s3, tmp_path, rows, storage, **explicit, run={"engine": "ray", "shard_rows": 4})
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(resolved(config)))
        for _ in range(4):
            code, output = on_head(cluster.url, "submit", "run", path)
            if code != TemporaryError.exit_code:
                break
        assert code == 0, output
        assert not faults.kills
        faults.is_on = False

        check_answers(cluster.url, [
            (0, ["status", str(path)], "SUCCEEDED"),
            (0, ["status", str(path)], f"{config.scored}: complete"),
            (0, ["logs", str(path)], "rows kept"),
        ])  # fmt: skip
        assert scores_of(config).equals(scores_of(plain))
        assert rows_in(config.output.path, config) == rows_in(plain.output.path, plain)
        again = config.model_copy(update={"run": config.run.model_copy(update={"engine": "plain"})})
        assert "(none now)" in run_all(again)


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
    command = [str(RAY), "job", "submit", "--address", head, "--working-dir", ".", "--"]
    return subprocess.run(
        [*command, "python", "jobs/run.py", "config.yaml"], cwd=checkout, capture_output=True, text=True, check=False
    )


@pytest.mark.soak
@pytest.mark.timeout(1200)  # six jobs, each with processes of its own: on a busy machine they take minutes
def test_submitted_job_writes_the_subset_and_passes_its_exit_code_on(
    tmp_path: Path,
    pairs: list[dict],
    models: dict,
    s3: S3Server,
    cluster: RayCluster,
):
    head = cluster.url
    plain = make_config(tmp_path / "plain", write_jsonl(tmp_path / "plain.jsonl", pairs), **models)
    run_all(plain)
    config = on_s3(
        s3, tmp_path, pairs, s3.storage, **models, run={"engine": "ray", "shard_rows": 16, "placement": "colocated"}
    )
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
    assert leaks(cluster.session, canaries()) == []

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
    check_answers(head, [
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
    ])  # fmt: skip


def check_answers(head: str, calls: list[tuple[int | None, list[str], str]]) -> None:
    """Commands, in one process: how each ends (None: not with 0), and what it says."""
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
