"""Whose model gets the name, and what is cleared away, with locks and without."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.training import workplace as module
from pipeline.training.run import run
from pipeline.training.workplace import publish, workplace

COPY = (
    "import pathlib, shutil, sys, time; shutil.copytree(sys.argv[3], sys.argv[2], "
    "copy_function=lambda *names: (time.sleep(0.05), shutil.copy(*names)))"
)


@pytest.fixture
def _no_locks(monkeypatch):
    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, "no locks here")

    monkeypatch.setattr(module.fcntl, "flock", refused)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("_no_locks")
def test_two_runs_without_locks_end_with_one_whole_output(make_job, tmp_path, monkeypatch):
    started = tmp_path / "started"
    both = f"open({str(started)!r}, 'a').write('x')\nwhile len(open({str(started)!r}).read()) < 2: pass\n"
    job = make_job(method="command", command=(sys.executable, "-c", both + COPY, "{dataset}", "{output}", "{policy}"))
    summaries = []
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)  # both set it, and neither puts back what was
    threads = [threading.Thread(target=lambda: summaries.append(run(job))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started.read_text() == "xx"  # neither waited
    assert summaries[0] == summaries[1] == json.loads((job.output / "training.json").read_text())
    assert names(job.output.parent) == [job.output.name]
    assert {*names(Path(job.policy.model)), "training.json"} <= {*names(job.output)}


def test_the_model_that_has_the_name_is_kept(tmp_path):
    output = tmp_path / "model"
    with workplace(output) as place:
        for number in (1, 2):
            (place / "model").mkdir(exist_ok=True)
            (place / "model" / "weights").write_text(str(number))
            assert publish(place / "model", output, {"number": number}) == {"number": 1}
    assert (output / "weights").read_text() == "1"
    assert names(tmp_path) == ["model"]


def test_something_else_that_took_the_name_meanwhile_is_kept(tmp_path):
    output = tmp_path / "model"
    with workplace(output) as place:
        (place / "model").mkdir()
        output.mkdir()
        (output / "notes").touch()
        with pytest.raises(ConfigError, match="no training wrote it"):
            publish(place / "model", output, {})
    assert names(output) == ["notes"]


def test_only_folders_of_the_dead_are_cleared(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here, old = module._machine(), time.time() - 2 * 86_400
    kept = (
        f".m.training-{here}-{os.getpid()}-00000000",
        f".m.training-ffffffff-{gone.pid}-00000001",
        ".m.training-notes",
        f".n.training-{here}-{gone.pid}-00000002",
    )
    cleared = (f".m.training-{here}-{gone.pid}-00000003", ".m.training-ffffffff-1-00000004")
    for name in (*kept, *cleared):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    os.utime(tmp_path / cleared[1], (old, old))
    with workplace(tmp_path / "m"):
        assert not {*cleared} & {*names(tmp_path)}
    assert names(tmp_path) == sorted(kept)


def test_a_long_training_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BEAT_S", 0.01)
    with workplace(tmp_path / "m") as place:
        os.utime(place, (0, 0))
        end = time.monotonic() + 30
        while place.stat().st_mtime == 0:
            assert time.monotonic() < end
