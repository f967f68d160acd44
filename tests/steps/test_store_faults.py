"""Faults of storage in the middle of a run: it goes on by itself, or says what to do and goes on when run again."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import Popen

import pytest
import yaml

from pipeline.config import Config, resolved
from pipeline.data.place import Place
from pipeline.errors import StorageError
from tests.data.fault_proxy import CARELESS, EXPIRED, faulty
from tests.fixtures_storage import KilledServer, S3Server, s3_server
from tests.steps.conftest import make_config, run_all, write_jsonl
from tests.steps.scored_data import objects

EXPLICIT = {"reward": {"backend": "columns"}, "metric": {"name": "explicit"}}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, pairs: list[dict]) -> Path:
    rows = [{**row, "reward_chosen": float(i % 7), "reward_rejected": 0.5} for i, row in enumerate(pairs)]
    return write_jsonl(tmp_path_factory.mktemp("source") / "pairs.jsonl", rows)


@pytest.fixture(scope="module")
def expected(source: Path) -> dict[str, bytes]:
    """Digests of the subset of a run that nothing disturbed."""
    run_all(make_config(source.parent, source, **EXPLICIT))
    return rows_in(objects(source.parent / "subset"))


def rows_in(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: digest for name, digest in found.items() if not name.endswith((".json", ".html"))}


def on_s3(s3: S3Server, source: Path, endpoint_url: str) -> Config:
    places = {"scored": s3.url("scored"), "output": {"path": s3.url("subset")}}
    storage = {"endpoint_url": endpoint_url, "region": "us-east-1"}
    return make_config(source.parent, source, **EXPLICIT, **places, storage=storage, run={"shard_rows": 15})


@pytest.mark.s3
def test_keys_that_expire_end_the_run_at_once_and_new_ones_go_on(
    source: Path, expected: dict[str, bytes], s3: S3Server
):
    asked_after: list[str] = []
    expired = threading.Event()

    def fault(method: str, path: str) -> str | None:
        if method == "PUT" and "/parts/00000002" in path:
            expired.set()
        if expired.is_set():
            asked_after.append(path)
            return EXPIRED
        return None

    with faulty(s3.endpoint_url, fault) as endpoint_url:
        config = on_s3(s3, source, endpoint_url)
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"ExpiredToken.*Renew the credentials") as error:
            run_all(config)
        assert error.value.exit_code == 2
        assert time.monotonic() - started < 10
        assert len(asked_after) == 1
    run_all(config.model_copy(update={"storage": s3.storage}))
    assert rows_in(objects(config.output.path, s3.storage)) == expected


@pytest.mark.s3
def test_a_store_that_overwrites_is_refused_before_anything_is_written(source: Path, s3: S3Server):
    with faulty(s3.endpoint_url, lambda *_: CARELESS) as endpoint_url:
        config = on_s3(s3, source, endpoint_url)
        with pytest.raises(StorageError, match="conditional writes"):
            run_all(config)
    assert Place.open(config.scored, s3.storage).sizes() == {}


@pytest.mark.slow
@pytest.mark.s3
def test_a_store_that_is_killed_and_comes_back_is_waited_for(source: Path, expected: dict[str, bytes], tmp_path: Path):
    again: list[Popen[bytes]] = []
    timers: list[threading.Timer] = []

    def fault(method: str, path: str) -> None:
        if method == "PUT" and "/parts/00000002" in path and not timers:
            killed = KilledServer(server.pid)
            timers.append(threading.Timer(3, lambda: again.append(killed.start())))
            timers[0].start()

    with s3_server(tmp_path) as server:
        try:
            with faulty(server.endpoint_url, fault) as endpoint_url:
                config = on_s3(server, source, endpoint_url)
                run_all(config)
                assert again
                assert "(none now)" in run_all(config)
                assert rows_in(objects(config.output.path, config.storage)) == expected
        finally:
            for timer in timers:
                timer.join()
            for process in again:
                process.kill()
                process.wait()


FILLS = """
mount -t tmpfs -o size={size}k alignpot "$1/disk" || exit 99
for size in {size} {size} 50000; do
    mount -o "remount,size=${{size}}k" "$1/disk"
    "$2" -m pipeline.cli run "$1/config.yaml" >> "$1/log" 2>&1
    echo $?
done
cp -r "$1/disk/." "$1/done"
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_is_temporary_and_leaves_nothing_half_written(
    source: Path, expected: dict[str, bytes], tmp_path: Path
):
    (tmp_path / "disk").mkdir()
    config = make_config(tmp_path / "disk", source, **EXPLICIT, run={"shard_rows": 6})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(resolved(config)))
    words = ["unshare", "--mount", "sh", "-c", FILLS.format(size=160), "sh", str(tmp_path), sys.executable]
    if os.geteuid() != 0:
        words[1:1] = ["--user", "--map-root-user"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if shutil.which("unshare") is None or done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no file system of our own can be mounted here")
    log = (tmp_path / "log").read_text()
    assert done.stdout.split() == ["75", "75", "0"], log
    assert "no space left (ENOSPC)" in log
    assert "Traceback" not in log
    assert rows_in(objects(tmp_path / "done" / "subset")) == expected
    assert not [path for path in (tmp_path / "done").rglob("*") if path.name.endswith(".tmp")]
