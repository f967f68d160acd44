"""Random faults in runs on a cluster, for as long as you like: `python -m tests.soak [--seeds 20] [--minutes 0.5]`.

A Ray of a head and two more nodes scores pairs with a tiny reward model, from and to a SeaweedFS behind a proxy. A
seeded scheduler kills workers and nodes, kills the store, and has it refuse a share of the requests. A run that ends
with a temporary error is begun again, as its message asks. What is done to it goes into a journal, one JSON a line.

Gate: every run ends, with as many rows as it read, each id once, and the subset of a run that nothing disturbed; run
again, it finds nothing to do.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from pipeline.errors import TemporaryError
from tests.data.fault_proxy import BUSY, faulty
from tests.fixtures_models import tiny_model, tiny_tokenizer
from tests.fixtures_storage import KilledServer, S3Server, s3_server
from tests.steps.conftest import PAIRS, make_config, run_all, write_jsonl
from tests.steps.scored_data import objects

NUM_ROWS, SHARD_ROWS = 240, 6
SHARES = (0.0, 0.0, 0.05, 0.2)
PAUSE_S = (3.0, 20.0)
OUTAGE_S = (1.0, 8.0)
FROZEN_S, THAWED_S = 30.0, 5.0
HEALTH = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "4000"}  # a node is dead after 25 s
_WORK = ("MapWorker", "ReadRows", "MapBatches")  # in the names of Ray's processes; others serve Ray itself

T = TypeVar("T")


class Journal:
    """What happened, with seconds since the start."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._started = time.monotonic()

    def note(self, what: str, **about: Any) -> None:
        line = json.dumps({"s": round(time.monotonic() - self._started, 1), "what": what, **about})
        self._file.write(line + "\n")
        self._file.flush()
        print(line, flush=True)


class Faults:
    """Nodes, workers and a store, and what can be done to them; all choices are those of one random generator."""

    def __init__(self, cluster: Cluster, store: S3Server, journal: Journal) -> None:
        self.chance = random.Random()
        self._cluster, self._journal = cluster, journal
        self._store: subprocess.Popen[bytes] | None = None
        self._store_pid = store.pid
        self._share = 0.0
        self._proxy_chance = random.Random()

    def seed(self, seed: int) -> None:
        """Begin anew, with another series of choices."""
        self.chance.seed(seed)
        self._proxy_chance.seed(seed + 1)
        self._share = 0.0

    def at_request(self, method: str, path: str) -> str | None:
        """What the proxy does with a request."""
        return BUSY if self._proxy_chance.random() < self._share else None

    def strike(self) -> None:
        """Do one of them."""
        faults = (self.kill_worker, self.kill_worker, self.lose_node, self.freeze_node, self.kill_store, self.throttle)
        self.chance.choice(faults)()

    def kill_worker(self) -> None:
        """Row 1 of the matrix. One that dies twice while it is built ends the run, as it should."""
        workers = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                name = process.name()
                if name.startswith("ray::") and any(word in name for word in _WORK) and "__init__" not in name:
                    workers.append((process.pid, name))
        if workers:
            pid, name = self.chance.choice(sorted(workers))
            self._journal.note("worker killed", worker=name)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def lose_node(self) -> None:
        """Row 7. Another node joins at once."""
        node = self._some_node()
        if node is not None:
            self._journal.note("node lost", node=node.node_id[:8])
            self._cluster.remove_node(node, allow_graceful=False)
            patiently(lambda: self._cluster.add_node(num_cpus=2))

    def freeze_node(self) -> None:
        """Like row 8: a node does nothing until it is taken for dead, and then goes on as if nothing had been."""
        node = self._some_node()
        if node is not None:
            raylet = node.all_processes["raylet"][0].process.pid
            frozen = [psutil.Process(raylet), *psutil.Process(raylet).children(recursive=True)]
            self._journal.note("node frozen", node=node.node_id[:8], processes=len(frozen))
            signal_all(frozen, signal.SIGSTOP)
            time.sleep(FROZEN_S)
            alive = [each["NodeID"] for each in ray.nodes() if each["Alive"]]
            self._journal.note("node goes on", taken_for_dead=node.node_id not in alive)
            signal_all(frozen, signal.SIGCONT)
            time.sleep(THAWED_S)
            self._cluster.remove_node(node, allow_graceful=False)
            patiently(lambda: self._cluster.add_node(num_cpus=2))

    def _some_node(self) -> Any:
        """One that neither is the head nor is the one that the driver is connected to; None if there is none."""
        own = ray._private.worker.global_worker.node
        others = [
            node
            for node in self._cluster.worker_nodes
            if own is None or node._raylet_socket_name != own._raylet_socket_name
        ]
        return self.chance.choice(sorted(others, key=lambda node: node._raylet_socket_name)) if others else None

    def kill_store(self) -> None:
        """Row 12. It comes back."""
        killed, outage = KilledServer(self._store_pid), self.chance.uniform(*OUTAGE_S)
        self._journal.note("store killed", outage_s=round(outage, 1))
        if self._store is not None:
            self._store.wait()
        time.sleep(outage)
        self._store = killed.start()
        self._store_pid = self._store.pid

    def throttle(self) -> None:
        """Row 13: another share of the requests is refused from now on."""
        self._share = self.chance.choice(SHARES)
        self._journal.note("store refuses", share=self._share)

    def strike_during(self, act: Callable[[], object]) -> None:
        """Do one after another, with pauses, while another thread acts. This thread is the main one: Ray starts nodes
        in no other."""
        with ThreadPoolExecutor(1) as pool:
            acting = pool.submit(act)
            while not wait([acting], self.chance.uniform(*PAUSE_S)).done:
                self.strike()
        acting.result()

    def end(self) -> None:
        """End the store, if it was started here."""
        if self._store is not None:
            self._store.kill()
            self._store.wait()


def signal_all(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to those of them that still are."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def patiently(start: Callable[[], T]) -> T:
    """Start a node. Ray gives one 30 seconds, which is not always enough on a busy machine."""
    for _ in range(5):
        with contextlib.suppress(Exception):
            return start()
    return start()


def write_inputs(folder: Path) -> dict[str, Any]:
    """A source and a tiny reward model, as sections of a config."""
    lines = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    rows = [{**lines[i % len(lines)], "id": f"row-{i}"} for i in range(NUM_ROWS)]
    rows[7]["rejected"] = rows[7]["chosen"]
    source, model = write_jsonl(folder / "pairs.jsonl", rows), folder / "reward"
    tiny_model("llama", classifier=True, seed=3, num_labels=1).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    return {
        "source": {"path": str(source)},
        "reward": {"backend": "classifier", "model": str(model), "dtype": "float32", "num_cpus": 0.5, "replicas": 3},
        "metric": {"name": "explicit"},
    }


def rows_in(url: str | Path, config: Config) -> dict[str, bytes]:
    """Digests of the files of a subset that hold rows."""
    found = objects(url, config.storage)
    return {name: digest for name, digest in found.items() if not name.endswith((".json", ".html"))}


def until_it_ends(config: Config, journal: Journal) -> None:
    """Run, and run again while the error says that this helps."""
    tries = 0
    while True:
        tries += 1
        try:
            run_all(config)
        except TemporaryError as error:
            journal.note("run again", error=str(error)[:200])
        else:
            journal.note("run complete", tries=tries)
            return


def check(config: Config, expected: dict[str, bytes]) -> None:
    """The gate."""
    dataset = Dataset.open(Place.open(config.scored, config.storage))
    manifest = dataset.manifest
    assert manifest.num_rows == manifest.num_kept + manifest.num_dropped == NUM_ROWS, "rows were lost or doubled"
    ids = [id_ for table in dataset.tables(["id"], kept_only=False) for id_ in table["id"].to_pylist()]
    assert len({*ids}) == len(ids) == NUM_ROWS, "an id twice"
    assert manifest.num_dropped == 1, f"other rows were dropped: {manifest.drops_by_reason}"
    assert rows_in(config.output.path, config) == expected, "another subset"
    assert "(none now)" in run_all(config), "something was done twice"


def soak(seeds: range, minutes: float, folder: Path, journal: Journal) -> None:
    """Runs of every seed for so long; raises at the first that fails."""
    sections = write_inputs(folder)
    plain = make_config(folder / "plain", folder / "pairs.jsonl", **sections)
    run_all(plain)
    expected = rows_in(folder / "plain" / "subset", plain)
    with s3_server(folder) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in HEALTH.items():
            patch.setenv(name, value)
        cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 2}))
        faults = Faults(cluster, store, journal)
        try:
            for _ in range(2):
                patiently(lambda: cluster.add_node(num_cpus=2))
            ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
            with faulty(store.endpoint_url, faults.at_request) as endpoint_url:
                for seed in seeds:
                    faults.seed(seed)
                    deadline, number = time.monotonic() + 60 * minutes, 0
                    while time.monotonic() < deadline:
                        journal.note("run begins", seed=seed, number=number)
                        places = {"scored": store.url("scored"), "output": {"path": store.url("subset")}}
                        config = make_config(
                            folder,
                            folder / "pairs.jsonl",
                            **sections,
                            **places,
                            storage={"endpoint_url": endpoint_url, "region": "us-east-1"},
                            run={"engine": "ray", "shard_rows": SHARD_ROWS},
                        )
                        faults.strike_during(partial(until_it_ends, config, journal))
                        check(config, expected)
                        number += 1
                    journal.note("seed passed", seed=seed, runs=number)
        finally:
            ray.shutdown()
            cluster.shutdown()
            faults.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each seed; the last run is finished")
    parser.add_argument("--journal", type=Path, default=Path(tempfile.gettempdir()) / "alignpot-soak.jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignpot-soak-", ignore_cleanup_errors=True) as folder:
        soak(range(options.seed, options.seed + options.seeds), options.minutes, Path(folder), Journal(options.journal))
    print(f"{options.seeds} seeds passed; the journal is {options.journal}")


if __name__ == "__main__":
    main()
