"""A driver that dies before any change it makes to storage, and is run again, ends as if nothing had happened."""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from pipeline.config import Config, Storage
from pipeline.data.dataset import Dataset
from pipeline.data.place import Place
from tests.exports.conftest import contents, export
from tests.steps.conftest import make_config, run_all, write_jsonl

COMMITS = ("os.link",)
CHANGES = (*COMMITS, "open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate")


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
        if not self._kinds or event not in CHANGES:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
            return
        if event == "os.mkdir" and Path(arguments[0]).is_dir():
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
    rows = [{**row, "reward_chosen": float(i % 3), "reward_rejected": 0.5} for i, row in enumerate(pairs[:12])]
    config = make_config(
        work,
        write_jsonl(tmp_path / "pairs.jsonl", [*rows, {**rows[0], "id": "same", "rejected": rows[0]["chosen"]}]),
        reward={"backend": "columns"},
        metric={"name": "explicit"},
        run={"shard_rows": 7, "max_dropped": 0.5},
        output={"rows_per_file": 3},
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
    assert (manifest.num_rows, manifest.num_kept, manifest.num_dropped) == (13, 12, 1)
    assert "(none now)" in run_all(config)
