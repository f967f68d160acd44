"""Three hosts on a network of their own: one is cut off in the middle of a run, and comes back."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
import ray
import yaml

from pipeline.config import Storage, resolved
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from tests.steps.conftest import make_config, run_all, write_jsonl
from tests.steps.test_score import scores_of, selected_ids

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
CUT_OFF_S = 30.0

pytestmark = [
    pytest.mark.soak,
    pytest.mark.ray,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and the `ip` of iproute2"
    ),
]

SLOW_REWARD = """
import time

def length(rows):
    time.sleep(0.5 * len(rows))
    return [float(len(row["response"][-1]["content"])) for row in rows]
"""


class Hosts:
    """Hosts 0, 1 and 2, each in a network namespace; 0 holds the bridge between them."""

    def __init__(self) -> None:
        self._name = f"ap{os.getpid()}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for host in range(3):
            ip("netns", "add", self.name(host))
            self.ip(host, "link", "set", "lo", "up")
        self.ip(0, "link", "add", "bridge", "type", "bridge")
        self.ip(0, "addr", "add", f"{self.address(0)}/24", "dev", "bridge")
        self.ip(0, "link", "set", "bridge", "up")
        for host in (1, 2):
            peer = ["peer", "name", "eth0", "netns", self.name(host)]
            ip("link", "add", self.link(host), "netns", self.name(0), "type", "veth", *peer)
            self.ip(0, "link", "set", self.link(host), "master", "bridge", "up")
            self.ip(host, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            self.ip(host, "link", "set", "eth0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in (2, 1, 0):
            for pid in ip("netns", "pids", self.name(host)).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
        for process in self._processes:
            process.wait()
        for host in (2, 1, 0):
            ip("netns", "del", self.name(host))

    def name(self, host: int) -> str:
        return f"{self._name}h{host}"

    def link(self, host: int) -> str:
        return f"to{host}"

    def address(self, host: int) -> str:
        return f"10.77.{os.getpid() % 250}.{host + 1}"

    def ip(self, host: int, *words: str) -> str:
        return ip("-n", self.name(host), *words)

    def start(self, host: int, *words: str, **variables: str) -> "subprocess.Popen[bytes]":
        env = {**os.environ, **variables, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        process = subprocess.Popen(["ip", "netns", "exec", self.name(host), *words], env=env, cwd=ROOT)
        self._processes.append(process)
        return process


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    ray.shutdown()
    with Hosts() as found:
        yield found


def wait_until(holds: Callable[[], bool], limit_s: float, what: str) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.5)


def alive(hosts: Hosts) -> int:
    """Nodes that the head holds for alive."""
    ask = f"import ray; ray.init('{hosts.address(0)}:6379'); print('alive', sum(n['Alive'] for n in ray.nodes()))"
    words = ["ip", "netns", "exec", hosts.name(0), sys.executable, "-c", ask]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    return int(done.stdout.rpartition("alive ")[2] or 0) if done.returncode == 0 else 0


def test_a_host_that_is_cut_off_and_comes_back_writes_nothing_twice(
    hosts: Hosts, tmp_path: Path, pairs: list[dict], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "slow_reward.py").write_text(SLOW_REWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    reward = {"backend": "function", "function": "slow_reward:length", "replicas": 2, "batch_rows": 1}
    source = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    kept = {"reward": reward, "metric": {"name": "explicit"}}
    plain = make_config(tmp_path / "plain", source, **kept)
    config = make_config(tmp_path / "hosts", source, **kept, run={"engine": "ray", "shard_rows": 4})
    quick = {f"RAY_health_check_{name}": value for name, value in (
        ("period_ms", "1000"), ("timeout_ms", "2000"), ("failure_threshold", "3"), ("initial_delay_ms", "1000"),
    )}  # fmt: skip
    head = ["--head", "--port=6379", "--num-cpus=1", "--include-dashboard=false"]
    worker = [f"--address={hosts.address(0)}:6379", "--num-cpus=2"]

    def join(host: int, nodes: int) -> None:
        store = f"--object-store-memory={200 * 2**20}"
        words = [RAY, "start", "--block", f"--node-ip-address={hosts.address(host)}", store]
        hosts.start(host, *words, *(worker if host else head), **quick)
        wait_until(lambda: alive(hosts) == nodes, 180, f"host {host} does not join")

    for host in range(3):
        join(host, host + 1)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(resolved(config)))
    command = [sys.executable, "-m", "pipeline.cli", "run", str(path)]
    address = {"RAY_ADDRESS": f"{hosts.address(0)}:6379"}
    parts = tmp_path / "hosts" / "scored" / "parts"
    driver = hosts.start(0, *command, **address)
    wait_until(lambda: len([*parts.glob("*.parquet")]) >= 2, 300, "no parts")
    hosts.ip(0, "link", "set", hosts.link(1), "down")
    time.sleep(CUT_OFF_S)
    hosts.ip(0, "link", "set", hosts.link(1), "up")
    code = driver.wait(timeout=600)
    assert code in (0, 75)
    if code == 75:
        assert hosts.start(0, *command, **address).wait(timeout=600) == 0
    run_all(plain)
    found = Dataset.open(Place.open(config.scored, Storage()))
    assert {*Counter(found.table(["id"])["id"].to_pylist()).values()} == {1}
    assert len([*parts.glob("*.parquet")]) == len(found.manifest.files) == 15
    assert scores_of(config).equals(scores_of(plain))
    assert selected_ids(config) == selected_ids(plain)
