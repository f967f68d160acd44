"""No secret and no text of a row in what a run prints, logs, writes about itself or sends; no port open to others."""

import ipaddress
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.config import Config, resolved
from pipeline.data.place import Place
from pipeline.on_ray.shipment import prepare_job
from pipeline.rewards import probe
from tests.fixtures_storage import S3Server
from tests.rewards.reward_servers import RewardServer
from tests.rewards.service import Asked, Reply, serving
from tests.steps.conftest import Ended, make_config, write_jsonl

SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "REWARD_KEY", "WANDB_API_KEY")
TEXT = "canary-text-of-a-row"
EXPLICIT = {"reward": {"backend": "columns"}, "metric": {"name": "explicit"}}


def canaries() -> list[str]:
    """What must be found nowhere: the secrets that are set, and the text of rows."""
    return [TEXT, *(os.environ[name] for name in SECRETS if name in os.environ)]


def leaks(folder: Path, secrets: Collection[str]) -> list[tuple[str, str]]:
    """Files below a folder that hold a secret, with the first letters of it."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [(str(path), word[:12]) for path in files for word in secrets if word.encode() in path.read_bytes()]


@pytest.fixture
def source(tmp_path: Path, pairs: list[dict]) -> Path:
    """Pairs whose text must not be told; one of them is dropped, and another one has an answer that is no text."""
    rows = [
        {**row, "prompt": [{"role": "user", "content": f"{TEXT} {i}"}], "reward_chosen": i / 7, "reward_rejected": 0.5}
        for i, row in enumerate(pairs)
    ]
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[4]["chosen"] = [{"role": "assistant", "content": [TEXT]}]
    return write_jsonl(tmp_path / "source" / "pairs.jsonl", rows)


def written(path: Path, config: Config) -> Path:
    path.write_text(yaml.safe_dump(resolved(config)))
    return path


def test_secrets_of_the_environment_and_text_of_rows_are_told_nowhere(
    source: Path, tmp_path: Path, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.root, "handlers", [])
    for name in SECRETS:
        monkeypatch.setenv(name, f"canary-{name}-0c1d")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(tmp_path / "events" / "lineage"))
    work, page = tmp_path / "work", tmp_path / "events" / "page.html"
    page.parent.mkdir()
    path = written(tmp_path / "config.yaml", make_config(work, source, **EXPLICIT))
    wrong = written(tmp_path / "wrong.yaml", make_config(work / "wrong", source, **EXPLICIT, run={"max_dropped": 0.0}))
    calls = [
        (0, ["inspect", source]),
        (0, ["run", path, "--dry-run"]),
        (0, ["run", path]),
        (0, ["report", path, "--html", page]),
        (0, ["verify", work / "subset"]),
        (3, ["run", wrong]),
        (2, ["run", path, "--set", "select.fraction=0.2"]),
        (0, ["submit", "run", path, "--dry-run"]),
        (75, ["submit", "run", path, "--address", "http://127.0.0.1:1"]),
    ]
    for code, words in calls:
        ended = command(*words)
        assert ended.code == code, (words, ended.err)
        assert not [word for word in canaries() if word in ended.out + ended.err], words
    job = prepare_job("run", path, ())
    (tmp_path / "job").mkdir()
    sent = job.write(tmp_path / "job")
    assert not [word for word in canaries() if word in f"{job.metadata} {job.entrypoint} {sent}"]
    assert leaks(tmp_path / "job", canaries()) == []
    assert leaks(tmp_path, canaries()[1:]) == []
    assert len([*page.parent.iterdir()]) > 1, "no event of lineage"
    assert leaks(page.parent, canaries()) == []
    assert {Path(name).suffix for name, _ in leaks(work, [TEXT])} <= {".parquet", ".arrow"}


def test_the_key_of_a_reward_service_is_sent_to_it_and_told_nowhere_else(
    source: Path, tmp_path: Path, tiny_reward_dir: Path, command: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setenv("REWARD_KEY", "canary-reward-7c2e")
    monkeypatch.setattr(probe, "_LIMIT_S", 0.5)
    with serving(RewardServer("vllm", lambda ids: float(sum(ids) % 1009))) as server:
        reward = {"backend": "endpoint", "kind": "vllm", "model": str(tiny_reward_dir), "served_name": "rm"}
        reward |= {"urls": [server.url], "key_variable": "REWARD_KEY"}
        run = {"cache": str(tmp_path / "cache"), "max_dropped": 0.5}
        config = make_config(tmp_path / "work", source, metric={"name": "explicit"}, reward=reward, run=run)
        path = written(tmp_path / "config.yaml", config)

        def refuse(asked: Asked, _: object) -> Reply:
            return Reply({"error": {"message": f"{asked.headers}", "type": TEXT}}, 401)

        def fail(asked: Asked, _: object) -> Reply:
            return Reply({"error": f"{asked.headers}"}, 500)

        for code, fault in ((0, None), (2, refuse), (75, fail)):
            server.fault = fault or server.fault
            ended = command("run", path, *(["--set", "scored=" + str(tmp_path / f"other-{code}")] if code else []))
            assert ended.code == code, ended.err
            assert not [word for word in canaries() if word in ended.out + ended.err]
        assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer canary-reward-7c2e"}
    assert [*(tmp_path / "cache").rglob("*.parquet")]
    assert leaks(tmp_path, ["canary-reward-7c2e"]) == []
    assert leaks(tmp_path / "cache", canaries()) == []


def listening(process: psutil.Process) -> Iterator[str]:
    """Addresses that a process and those it started accept connections on."""
    for each in [process, *process.children(recursive=True)]:
        try:
            yield from (c.laddr.ip for c in each.net_connections("inet") if c.status == psutil.CONN_LISTEN)
        except psutil.NoSuchProcess:
            continue


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.s3
def test_a_ray_of_our_own_tells_no_secret_and_listens_on_loopback_alone(
    source: Path, tmp_path: Path, tiny_reward_dir: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "canary-hub-1f0a")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary-ray-" + os.urandom(16).hex())
    monkeypatch.setenv("REWARD_KEY", "canary-reward-7c2e")
    server = RewardServer("vllm", lambda ids: float(sum(ids) % 1009))
    config = make_config(
        tmp_path,
        source,
        metric={"name": "explicit"},
        reward={
            "backend": "endpoint",
            "kind": "vllm",
            "model": str(tiny_reward_dir),
            "served_name": "rm",
            "urls": [server.url],
            "key_variable": "REWARD_KEY",
        },
        storage=s3.storage.model_dump(mode="json"),
        scored=s3.url("scored"),
        output={"path": s3.url("subset")},
        run={"engine": "ray", "shard_rows": 10, "max_dropped": 0.5, "cache": s3.url("cache")},
    )
    path = written(tmp_path / "config.yaml", config)
    # Ray's sockets lie deep in the folder, and a socket's path may have 107 bytes: that of pytest is too long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder, serving(server):
        log = tmp_path / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "run", str(path)],
                stdout=out,
                stderr=out,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token"},
            )
        found: list[set[str]] = []
        while process.poll() is None:
            found.append({*listening(psutil.Process(process.pid))})
            time.sleep(1)  # to look costs a tenth of a second
        assert process.returncode == 0, log.read_text()[-3000:]
        assert len(max(found, key=len)) > 0, "the ports of Ray were not seen"
        assert all(_is_loopback(address) for addresses in found for address in addresses), found
        assert [*Path(folder).rglob("raylet.out")]
        assert leaks(Path(folder), canaries()) == []
    assert leaks(log.parent, canaries()[1:]) == []
    assert TEXT not in log.read_text()
    assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer canary-reward-7c2e"}
    for url in (config.scored, config.output.path, config.run.cache):
        place = Place.open(url, s3.storage)
        assert place.sizes()
        for name in filter(lambda name: name.endswith(".json") or url == config.run.cache, place.sizes()):
            told = (place / name).read() or b""
            assert not [word for word in canaries() if word.encode() in told], name


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
