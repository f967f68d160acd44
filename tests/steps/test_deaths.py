"""A driver that dies before any change it makes to storage, and is run again, ends as if nothing had happened."""

import json
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import yaml
from ray.cluster_utils import Cluster

from pipeline.config import Config, Storage, resolved
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from tests.exports.conftest import contents, export
from tests.soak import patiently
from tests.steps.commands import start
from tests.steps.conftest import make_config, run_all, write_jsonl
from tests.steps.storage_changes import CHANGES, COMMITS, Trap, is_change

NUM_DEATHS = 20
SEED = 7


class Death(BaseException):
    """The end of a process, which no handler sees."""


class Mortal:
    """Sees every change that this process makes to the file system, and has one of them be its end: none follows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: Collection[str] = ()
        self._left = 0
        sys.addaudithook(self._on_event)  # Python has no way to take it back

    def dies(self, act: Callable[[], object], number: int, kinds: Collection[str]) -> bool:
        """Act until the change of these kinds with this number, counted from one. False if there are fewer."""
        self._kinds, self._left = kinds, number
        try:
            act()
        except Death:
            return True
        finally:
            for thread in threading.enumerate():
                if thread.name.startswith("ThreadPoolExecutor"):
                    thread.join(timeout=10)
            self._kinds = ()
        return False

    def _on_event(self, event: str, arguments: tuple) -> None:
        if not self._kinds or not is_change(event, arguments):
            return
        with self._lock:
            self._left -= self._left > 0 and event in self._kinds
            if self._left == 0:
                raise Death


@pytest.fixture(scope="module")
def mortal() -> Mortal:
    return Mortal()


def run_and_export(config: Config, folder: Path) -> None:
    run_all(config)
    export(folder / "subset", "trl", folder / "export")


def visible(folder: Path) -> dict[str, bytes]:
    """Files that a reader looks at, without how long scoring took.

    A probe or temporary file of the dead may stay beside them.
    """
    files = {name: data for name, data in contents(folder).items() if not Path(name).name.startswith(".")}
    assert files.pop("subset/report.html")
    scored, subset, report = (
        json.loads(files[name]) for name in ("scored/_SUCCESS.json", "subset/_SUCCESS.json", "subset/report.json")
    )
    del scored["extra"], report["scoring"]
    subset["beside"] = [file for file in subset["beside"] if not file["path"].startswith("report")]
    for name, known in (("scored/_SUCCESS", scored), ("subset/_SUCCESS", subset), ("subset/report", report)):
        del known["seal"]
        files[f"{name}.json"] = json.dumps(known).encode()
    return files


@pytest.mark.parametrize("kinds", [COMMITS, pytest.param(CHANGES, marks=pytest.mark.slow)], ids=["commit", "change"])
def test_death_before_any_change_of_storage_is_made_good_by_running_again(
    mortal: Mortal, kinds: Collection[str], tmp_path: Path, pairs: list[dict], monkeypatch: pytest.MonkeyPatch
):
    scratch, work = tmp_path / "tmp", tmp_path / "work"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr("os.fsync", lambda _: None)  # a process dies here, not the machine
    rows = [{**row, "reward_chosen": float(i % 3), "reward_rejected": 0.5} for i, row in enumerate(pairs[:8])]
    config = make_config(
        work,
        write_jsonl(tmp_path / "pairs.jsonl", [*rows, {**rows[0], "id": "same", "rejected": rows[0]["chosen"]}]),
        reward={"backend": "columns"},
        metric={"name": "explicit"},
        run={"shard_rows": 5, "max_dropped": 0.5},
        output={"rows_per_file": 2},
    )
    run_and_export(config, work)
    whole = visible(work)
    number = 1
    while True:
        shutil.rmtree(work)
        if not mortal.dies(lambda: run_and_export(config, work), number, kinds):
            break
        run_and_export(config, work)
        assert visible(work) == whole
        number += 1
    assert number > len(whole)
    assert not [path for path in scratch.rglob("*") if path.is_file()]
    manifest = Dataset.open(Place.open(config.scored, Storage())).manifest
    assert (manifest.num_rows, manifest.num_kept, manifest.num_dropped) == (9, 8, 1)
    assert "(none now)" in run_all(config)


def run_until(config: Path, trap: Trap, number: int) -> bool:
    """Run as a process of its own, which dies before a change of storage. False if there were fewer."""
    config.with_suffix(".log").unlink(missing_ok=True)
    driver = start("run", config, trap.watch)
    trap.set(driver.pid, number)
    code = driver.wait(timeout=300)
    assert code in (0, -signal.SIGKILL), config.with_suffix(".log").read_text()
    return code != 0


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_driver_killed_on_ray_is_made_good_by_running_again(
    tmp_path: Path, pairs: list[dict], monkeypatch: pytest.MonkeyPatch
):
    """Killed before changes of storage that are drawn at random, its own ones and those of its workers, and again while
    it goes on. The Ray goes on too, and the dead driver's workers until it ends them."""
    work, control = tmp_path / "work", tmp_path / "control"
    control.mkdir()
    trap, chance = Trap(control, work), random.Random(SEED)
    for name, value in trap.environment().items():
        monkeypatch.setenv(name, value)
    reward = {"backend": "function", "function": "tests.rewards.functions:length", "isolate": False, "num_cpus": 0.5}
    config = make_config(
        work,
        write_jsonl(tmp_path / "pairs.jsonl", [*pairs, {**pairs[0], "id": "same", "rejected": pairs[0]["chosen"]}]),
        reward=reward,
        metric={"name": "explicit"},
        run={"engine": "ray", "shard_rows": 7, "max_dropped": 0.5},
        output={"rows_per_file": 9},
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(resolved(config)))
    cluster = patiently(
        lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    )
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        assert not run_until(path, trap, sys.maxsize)
        whole, num_changes, deaths = visible(work), trap.num_seen(), []
        while len(deaths) < NUM_DEATHS:
            shutil.rmtree(work)
            while run_until(path, trap, chance.randint(1, num_changes)):
                deaths.append(trap.num_seen())
            trap.num_seen()
            assert visible(work) == whole
            print(f"of {num_changes} changes, died at {deaths}", flush=True)
        assert not run_until(path, trap, sys.maxsize)
        assert "(none now)" in path.with_suffix(".log").read_text()
    finally:
        cluster.shutdown()
    manifest = Dataset.open(Place.open(config.scored, Storage())).manifest
    assert (manifest.num_rows, manifest.num_kept, manifest.num_dropped) == (61, 60, 1)
