"""An object appears whole or not at all, and one of several writers wins."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import config
from pipeline.errors import StorageError, TemporaryError
from pipeline.storage.commit import create, create_from_file
from pipeline.storage.filesystem import open_filesystem, read_bytes
from tests.storage.fault_proxy import BUSY, CONFLICT, LOSE_ANSWER, RESET, faulty


def test_second_create_changes_nothing(place):
    fs, root = place
    assert create(fs, f"{root}/deep/a.bin", b"first")
    assert not create(fs, f"{root}/deep/a.bin", b"second")
    assert read_bytes(fs, f"{root}/deep/a.bin") == b"first"
    assert read_bytes(fs, f"{root}/deep/b.bin") is None


def test_one_of_many_racing_threads_wins(place):
    fs, root = place
    for round_number in range(3):
        path = f"{root}/race-{round_number}"
        with ThreadPoolExecutor(12) as pool:
            won = list(pool.map(lambda i, path=path: create(fs, path, b"%03d" % i * 5000), range(12)))
        assert won.count(True) == 1
        assert read_bytes(fs, path) == b"%03d" % won.index(True) * 5000


_WRITER = """
import os, sys
from pipeline import config
from pipeline.storage.commit import create
from pipeline.storage.filesystem import open_filesystem
url, endpoint, me = sys.argv[1:]
fs, root = open_filesystem(url, config.Storage(endpoint_url=endpoint or None, region="us-east-1"))
print("ready", flush=True)
for number in range(100_000):
    data = bytes([int(me)]) * 3_000_000
    won = create(fs, f"{root}/{number:06d}", data)
    print(number, int(won), flush=True)
    if number + 1 == int(os.environ.get("ROUNDS", 100_000)):
        break
"""


def _writer(url: str, endpoint: str, me: int, **environment: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, url, endpoint, str(me)],
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
    )


def test_one_of_two_racing_processes_wins_each_object(tmp_path):
    writers = [_writer(str(tmp_path), "", me, ROUNDS="20") for me in (1, 2)]
    outputs = [each.communicate(timeout=60)[0].decode().split("\n") for each in writers]
    won = [[line.endswith(" 1") for line in output if line and line != "ready"] for output in outputs]
    assert [a + b for a, b in zip(*won, strict=True)] == [1] * 20
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {3_000_000}


@pytest.mark.parametrize("kind", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_killed_writer_leaves_only_whole_objects(request, tmp_path, kind):
    if kind == "s3":
        s3 = request.getfixturevalue("s3")
        url, endpoint, storage = s3.url("kill"), s3.endpoint_url, s3.storage
    else:
        url, endpoint, storage = str(tmp_path / "out"), "", config.Storage()
    for kill in range(4):
        writer = _writer(f"{url}/{kill}", endpoint, kill)
        acknowledged = 0
        assert writer.stdout.readline() == b"ready\n"
        while acknowledged < 2:
            acknowledged += writer.stdout.readline().endswith(b" 1\n")
        time.sleep(0.004 * kill)
        writer.send_signal(signal.SIGKILL)
        acknowledged += writer.communicate()[0].count(b" 1\n")
        fs, root = open_filesystem(f"{url}/{kill}", storage)
        seen = [name for name in fs.find(root) if not name.rpartition("/")[2].startswith(".")]
        assert len(seen) >= acknowledged
        assert all(read_bytes(fs, name) == bytes([kill]) * 3_000_000 for name in seen)


def test_exception_while_writing_leaves_nothing(local_place):
    fs, root = local_place
    with pytest.raises(TypeError):
        create(fs, f"{root}/a.bin", object())
    assert list(Path(root).iterdir()) == []


def test_file_is_created_like_bytes(place, tmp_path):
    fs, root = place
    source = tmp_path / "source"
    source.write_bytes(os.urandom(300_000))
    assert create_from_file(fs, f"{root}/small", source)
    assert not create_from_file(fs, f"{root}/small", source)
    assert read_bytes(fs, f"{root}/small") == source.read_bytes()


@pytest.mark.slow
@pytest.mark.s3
def test_large_file_goes_up_in_parts_and_is_created_once(s3_place, tmp_path):
    fs, root = s3_place
    source = tmp_path / "source"
    source.write_bytes(os.urandom(2**20) * 101)
    assert create_from_file(fs, f"{root}/large", source)
    assert not create_from_file(fs, f"{root}/large", source)
    assert fs.size(f"{root}/large") == 101 * 2**20


@pytest.mark.s3
def test_lost_answer_counts_as_committed(s3):
    lost = []

    def once(method: str, path: str) -> str | None:
        if method == "PUT" and not lost:
            lost.append(path)
            return LOSE_ANSWER
        return None

    with faulty(s3.endpoint_url, once) as endpoint_url:
        fs, root = open_filesystem(s3.url("lost"), s3.storage.model_copy(update={"endpoint_url": endpoint_url}))
        assert create(fs, f"{root}/a", b"mine") is False
        assert lost
        assert read_bytes(fs, f"{root}/a") == b"mine"


@pytest.mark.s3
@pytest.mark.parametrize("num_conflicts", [1, 100])
def test_conflict_with_a_create_under_way_is_tried_again(s3, monkeypatch, num_conflicts):
    monkeypatch.setattr("pipeline.storage.commit._NUM_CONFLICT_RETRIES", 3)
    faults = iter([CONFLICT] * num_conflicts)
    with faulty(s3.endpoint_url, lambda *_: next(faults, None)) as endpoint_url:
        fs, root = open_filesystem(s3.url("conflict"), s3.storage.model_copy(update={"endpoint_url": endpoint_url}))
        if num_conflicts == 1:
            assert create(fs, f"{root}/a", b"mine")
            assert not create(fs, f"{root}/a", b"mine")
        else:
            with pytest.raises(TemporaryError, match="ConditionalRequestConflict"):
                create(fs, f"{root}/a", b"mine")


@pytest.mark.s3
def test_passing_faults_are_waited_out(s3):
    faults = iter([BUSY, RESET, CONFLICT])
    with faulty(s3.endpoint_url, lambda *_: next(faults, None)) as endpoint_url:
        storage = s3.storage.model_copy(update={"endpoint_url": endpoint_url, "max_attempts": 5})
        fs, root = open_filesystem(s3.url("flaky"), storage)
        assert create(fs, f"{root}/a", b"mine")
        assert read_bytes(fs, f"{root}/a") == b"mine"


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.parametrize("fault", [BUSY, RESET])
def test_lasting_faults_are_temporary_errors_never_absence(s3, fault):
    with faulty(s3.endpoint_url, lambda *_: fault) as endpoint_url:
        storage = s3.storage.model_copy(update={"endpoint_url": endpoint_url, "max_attempts": 1})
        for act in (lambda fs, path: create(fs, path, b"x"), read_bytes):
            fs, root = open_filesystem(s3.url("down"), storage)
            fs.retries = 1
            with pytest.raises(TemporaryError, match="Run the same command again"):
                act(fs, f"{root}/a")


def test_disk_without_hard_links_is_refused(local_place, monkeypatch):
    import errno

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    fs, root = local_place
    with pytest.raises(StorageError, match="no hard links"):
        create(fs, f"{root}/a", b"x")
