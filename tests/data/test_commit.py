"""An object appears whole or not at all, and one of several writers wins."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline import config
from pipeline.data.commit import clear_leftovers, create, create_from_file
from pipeline.data.place import Place
from pipeline.errors import StorageError, TemporaryError
from pipeline.scratch import scratch_folder
from tests.data.fault_proxy import BROKEN, BUSY, CONFLICT, EXPIRED, LOSE_ANSWER, RESET, TRUNCATED, faulty


def test_second_create_changes_nothing(place):
    assert create(place / "deep/a.bin", b"first")
    assert not create(place / "deep/a.bin", b"second")
    assert (place / "deep/a.bin").read() == b"first"
    assert (place / "deep/b.bin").read() is None


def test_one_of_many_racing_threads_wins(place):
    for round_number in range(3):
        path = place / f"race-{round_number}"
        with ThreadPoolExecutor(12) as pool:
            won = list(pool.map(lambda i, path=path: create(path, b"%03d" % i * 5000), range(12)))
        assert won.count(True) == 1
        assert path.read() == b"%03d" % won.index(True) * 5000


_WRITER = """
import os, sys
from pipeline import config
from pipeline.data.commit import create
from pipeline.data.place import Place
url, endpoint, me = sys.argv[1:]
place = Place.open(url, config.Storage(endpoint_url=endpoint or None, region="us-east-1"))
print("ready", flush=True)
for number in range(100_000):
    data = bytes([int(me)]) * 3_000_000
    won = create(place / f"{number:06d}", data)
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


@pytest.mark.parametrize("kind", ["local", pytest.param("s3", marks=[pytest.mark.s3, pytest.mark.slow])])
def test_killed_writer_leaves_only_whole_objects(request, tmp_path, kind):
    if kind == "s3":
        s3 = request.getfixturevalue("s3")
        url, endpoint, storage = s3.url("kill"), s3.endpoint_url, s3.storage
    else:
        url, endpoint, storage = str(tmp_path / "out"), "", config.Storage()
    for kill in (1, 3):
        writer = _writer(f"{url}/{kill}", endpoint, kill)
        acknowledged = 0
        assert writer.stdout.readline() == b"ready\n"
        while acknowledged < 2:
            acknowledged += writer.stdout.readline().endswith(b" 1\n")
        time.sleep(0.004 * kill)
        writer.send_signal(signal.SIGKILL)
        acknowledged += writer.communicate()[0].count(b" 1\n")
        place = Place.open(f"{url}/{kill}", storage)
        seen = [name for name in place.fs.find(place.root) if not name.rpartition("/")[2].startswith(".")]
        assert len(seen) >= acknowledged
        assert all(Place(place.fs, name).read() == bytes([kill]) * 3_000_000 for name in seen)


_OWNER = """
import os, sys, time
from pathlib import Path
from pipeline import config
from pipeline.scratch import scratch_folder
from pipeline.data.commit import create
from pipeline.data.place import Place
def wait(_):
    print("ready", flush=True)
    time.sleep(600)
os.fsync = wait
with scratch_folder("rows", Path(sys.argv[1])) as folder:
    (folder / "some").write_bytes(b"text of rows")
    create(Place.open(f"{sys.argv[1]}/out/parts/a", config.Storage()), b"text of rows")
"""


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(local_place, tmp_path):
    place = local_place
    (tmp_path / "alignpot-of-mine").mkdir()
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / "parts" / ".a.part.tmp").touch()
    before = {*tmp_path.rglob("*")}
    words = [sys.executable, "-c", _OWNER, str(tmp_path)]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert owner.stdout.readline() == b"ready\n"
        living = {*tmp_path.rglob("*")} - before
        assert {path.suffix for path in living if path.is_file()} == {"", ".lock", ".tmp"}
        clear_leftovers(place)
        with scratch_folder("other", tmp_path):
            assert living <= {*tmp_path.rglob("*")}
    finally:
        owner.kill()
        owner.communicate()
    clear_leftovers(place)
    with scratch_folder("other", tmp_path):
        assert {path.suffix for path in {*tmp_path.rglob("*")} - before if path.is_file()} == {".lock"}
    assert {*tmp_path.rglob("*")} == before


def test_clearing_takes_nothing_from_those_who_begin_meanwhile(local_place, tmp_path):
    place = local_place
    ended = threading.Event()

    def clear() -> None:
        while not ended.is_set():
            clear_leftovers(place)

    def work(thread: int) -> bool:
        won = [create(place / f"parts/{thread}-{number}", b"x") for number in range(40)]
        for _ in range(40):
            with scratch_folder("rows", tmp_path) as folder:
                (folder / "some").write_bytes(b"x")
        return all(won)

    with ThreadPoolExecutor(5) as pool:
        clearing = pool.submit(clear)
        try:
            assert all(pool.map(work, range(4)))
        finally:
            ended.set()
        clearing.result()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_exception_while_writing_leaves_nothing(local_place):
    place = local_place
    with pytest.raises(TypeError):
        create(place / "a.bin", object())
    assert list(Path(place.root).iterdir()) == []


def test_file_is_created_like_bytes(place, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(300_000))
    assert create_from_file(place / "small", source)
    assert not create_from_file(place / "small", source)
    assert (place / "small").read() == source.read_bytes()


@pytest.mark.slow
@pytest.mark.s3
def test_large_file_goes_up_in_parts_and_is_created_once(s3_place, tmp_path):
    place = s3_place
    source = tmp_path / "source"
    source.write_bytes(os.urandom(2**20) * 101)
    assert create_from_file(place / "large", source)
    assert not create_from_file(place / "large", source)
    assert place.fs.size(f"{place.root}/large") == 101 * 2**20


@pytest.mark.s3
def test_lost_answer_counts_as_committed(s3):
    lost = []

    def once(method: str, path: str) -> str | None:
        if method == "PUT" and not lost:
            lost.append(path)
            return LOSE_ANSWER
        return None

    with faulty(s3.endpoint_url, once) as endpoint_url:
        place = Place.open(s3.url("lost"), s3.storage.model_copy(update={"endpoint_url": endpoint_url}))
        assert create(place / "a", b"mine") is False
        assert lost
        assert (place / "a").read() == b"mine"


@pytest.mark.s3
@pytest.mark.parametrize("num_conflicts", [1, 100])
def test_conflict_with_a_create_under_way_is_tried_again(s3, monkeypatch, num_conflicts):
    monkeypatch.setattr("pipeline.data.commit._NUM_CONFLICT_RETRIES", 3)
    faults = iter([CONFLICT] * num_conflicts)
    with faulty(s3.endpoint_url, lambda *_: next(faults, None)) as endpoint_url:
        place = Place.open(s3.url("conflict"), s3.storage.model_copy(update={"endpoint_url": endpoint_url}))
        if num_conflicts == 1:
            assert create(place / "a", b"mine")
            assert not create(place / "a", b"mine")
        else:
            with pytest.raises(TemporaryError, match="ConditionalRequestConflict"):
                create(place / "a", b"mine")


@pytest.mark.s3
def test_passing_faults_are_waited_out(s3):
    faults = iter([BUSY, RESET, CONFLICT])
    with faulty(s3.endpoint_url, lambda *_: next(faults, None)) as endpoint_url:
        storage = s3.storage.model_copy(update={"endpoint_url": endpoint_url, "max_attempts": 5})
        place = Place.open(s3.url("flaky"), storage)
        assert create(place / "a", b"mine")
        assert (place / "a").read() == b"mine"


@pytest.mark.s3
@pytest.mark.parametrize(
    ("fault", "kind", "num_requests"),
    [
        (BUSY, TemporaryError, 2),
        (BROKEN, TemporaryError, 2),
        (RESET, TemporaryError, 4),  # aiohttp repeats each by itself
        (EXPIRED, StorageError, 1),
    ],
)
def test_lasting_faults_end_after_as_many_attempts_and_are_never_absence(s3, fault, kind, num_requests):
    asked = []
    with faulty(s3.endpoint_url, lambda *request: asked.append(request) or fault) as endpoint_url:
        storage = s3.storage.model_copy(update={"endpoint_url": endpoint_url, "max_attempts": 2})
        place = pickle.loads(pickle.dumps(Place.open(s3.url("down"), storage)))
        for act in (lambda place: create(place, b"x"), lambda place: place.read_range(0, 1), Place.sizes):
            asked.clear()
            with pytest.raises(kind, match="Renew" if fault == EXPIRED else "Run the same command again"):
                act(place / "a")
            assert len(asked) == num_requests


@pytest.mark.s3
@pytest.mark.parametrize("num_faults", [2, 3])
def test_answer_cut_short_is_asked_for_again_and_is_no_damage(s3, num_faults):
    url, faults = s3.url("cut"), iter([TRUNCATED] * num_faults)
    place = Place.open(url, s3.storage)
    create(place / "a", b"mine" * 100)
    with faulty(s3.endpoint_url, lambda *_: next(faults, None)) as endpoint_url:
        place = Place.open(url, s3.storage.model_copy(update={"endpoint_url": endpoint_url}))
        if num_faults < s3.storage.max_attempts:
            assert (place / "a").read_range(0, 400) == b"mine" * 100
        else:
            with pytest.raises(TemporaryError):
                (place / "a").read_range(0, 400)


def test_disk_without_hard_links_is_refused(local_place, monkeypatch):
    import errno

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    place = local_place
    with pytest.raises(StorageError, match="no hard links"):
        create(place / "a", b"x")
