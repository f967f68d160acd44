"""URLs that open, URLs that are refused, and faults told in words that help and give nothing away."""

import pickle
import traceback
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline import config
from pipeline.data.commit import check_writable
from pipeline.data.place import Place, in_order
from pipeline.errors import AlignpotError, ConfigError, StorageError, TemporaryError
from pipeline.faults import storage_errors
from tests.data.fault_proxy import BUSY, faulty

CANARY = "canary-5d0c-secret-access-key"


@pytest.mark.parametrize(
    ("url", "path"),
    [("/a/b/../c/", "/a/c"), ("file:///a/b", "/a/b"), ("FILE:///a//b/.", "/a/b"), ("s3://bucket/a/b/", "bucket/a/b")],
)
def test_paths_are_normalised(url, path):
    assert Place.open(url, config.Storage()).root == path


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Place.open("out/../parts", config.Storage())
    assert place.root == str(place) == str(tmp_path / "parts")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://host/data", "s3://"),
        ("https://host/data", "s3://"),
        ("ftp://host/data", "s3://"),
        ("memory://a", "s3://"),
        ("simplecache::s3://bucket/a", "chained"),
        ("s3://", "bucket"),
        ("s3://bucket/../other", "segments"),
        ("s3://bucket//a", "segments"),
        (f"s3://key:{CANARY}@bucket/a", "credentials"),
        (f"s3://{CANARY}@bucket/a", "credentials"),
        (f"s3://bucket/a?X-Amz-Signature={CANARY}", "credentials"),
        (f"https://key:{CANARY}@host::s3://bucket/a", "credentials"),
        (f"key:{CANARY}@host/a", "credentials"),
        ("a\0b", "null character"),
        ("", "empty"),
    ],
)
def test_urls_that_cannot_be_committed_to_are_refused(url, says):
    with pytest.raises(ConfigError, match=says) as caught:
        Place.open(url, config.Storage())
    assert CANARY not in str(caught.value)


def test_endpoint_with_credentials_is_refused():
    unchecked = config.Storage.model_construct(endpoint_url=f"http://me:{CANARY}@host")
    with pytest.raises(ConfigError, match="endpoint_url") as caught:
        Place.open("s3://bucket/a", unchecked)
    assert CANARY not in str(caught.value)


@pytest.mark.s3
def test_s3_filesystem_survives_pickling(s3):
    place = Place.open(s3.url("pickle"), s3.storage)
    check_writable(pickle.loads(pickle.dumps(place)))


def test_writable_place_passes_and_keeps_no_trace(place):
    check_writable(place)
    assert place.sizes() == {}


def test_readable_place_passes_and_an_empty_one_is_named(place):
    with pytest.raises(StorageError, match="not there"):
        place.check_readable()
    place.fs.makedirs(f"{place.root}/sub", exist_ok=True)
    place.fs.pipe_file(f"{place.root}/sub/a", b"x")
    place.check_readable()
    (place / "sub/a").check_readable()
    assert place.sizes() == {"sub/a": 1}
    assert (place / "sub/a").sizes() == (place / "nothing").sizes() == {}


@pytest.mark.s3
def test_objects_on_s3_are_listed_page_after_page(s3_place, monkeypatch):
    ask = s3_place.fs.call_s3
    monkeypatch.setattr(s3_place.fs, "call_s3", lambda *words, **keys: ask(*words, **keys, MaxKeys=2))
    wanted = {f"parts/{index}": index for index in range(1, 6)}
    for name, size in wanted.items():
        s3_place.fs.pipe_file(f"{s3_place.root}/{name}", b"x" * size)
    assert s3_place.sizes() == wanted


@pytest.mark.s3
def test_sibling_prefix_does_not_make_a_place_readable(s3):
    place = Place.open(s3.url("twin"), s3.storage)
    place.fs.pipe_file(f"{place.root}-longer/a", b"x")
    with pytest.raises(StorageError, match="not there"):
        place.check_readable()


def _refused(place: Place) -> list[AlignpotError]:
    """What every operation raises; each must fail."""
    found = []
    for act in (Place.check_readable, check_writable, Place.read, Place.sizes):
        with pytest.raises(StorageError) as caught:
            act(place)
        trace = "".join(traceback.format_exception(caught.value))
        assert "canary" not in trace
        assert "canary" not in str(caught.value)
        found.append(caught.value)
    return found


@pytest.mark.s3
def test_missing_bucket_is_named(s3):
    for error in _refused(Place.open("s3://no-such-bucket-here/a", s3.storage)):
        assert "bucket no-such-bucket-here does not exist" in str(error)
        assert error.exit_code == 2


@pytest.mark.s3
def test_missing_credentials_are_named(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for error in _refused(Place.open(s3.url(), s3.storage)):
        assert "no usable credentials" in str(error)
        assert "AWS_ACCESS_KEY_ID" in str(error)


@pytest.mark.s3
@pytest.mark.parametrize("key", ["alignpot-test-key", "unknown-key"])
def test_wrong_credentials_are_told_without_the_secret(s3, monkeypatch, key):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    for error in _refused(Place.open(s3.url(), s3.storage)):
        assert "403" in str(error)


@pytest.mark.s3
def test_reader_without_write_permission_is_refused_before_work_starts(s3, monkeypatch):
    url = s3.url("readonly")
    place = Place.open(url, s3.storage)
    place.fs.pipe_file(f"{place.root}/a", b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.reader[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader[1])
    place = Place.open(url, s3.storage)
    place.check_readable()
    with pytest.raises(StorageError, match=r"access to bucket alignpot-tests is denied.*s3:PutObject"):
        check_writable(place)


@pytest.mark.s3
def test_throttled_listing_is_not_an_empty_folder(s3):
    with faulty(s3.endpoint_url, lambda *_: BUSY) as endpoint_url:
        storage = s3.storage.model_copy(update={"endpoint_url": endpoint_url, "max_attempts": 1})
        for act in (Place.sizes, Place.check_readable, check_writable):
            place = Place.open(s3.url("busy"), storage)
            with pytest.raises(TemporaryError):
                act(place)


def test_unreachable_store_is_temporary(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    storage = config.Storage(endpoint_url="http://127.0.0.1:1", region="us-east-1", max_attempts=1)
    place = Place.open("s3://bucket/a", storage)
    with pytest.raises(TemporaryError, match="cannot be reached") as caught:
        place.read()
    assert caught.value.exit_code == 75


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(28, "No space left on device"), TemporaryError),
        (OSError(5, "Input/output error"), TemporaryError),
        (PermissionError(13, "Permission denied"), StorageError),
        (OSError(30, "Read-only file system"), StorageError),
        (NotADirectoryError(20, "Not a directory"), StorageError),
        (TimeoutError(), TemporaryError),
        (ConnectionResetError(104, "reset"), TemporaryError),
        (BrokenPipeError(32, "pipe"), TemporaryError),
        (ZeroDivisionError(), ZeroDivisionError),
        (ConfigError("ours"), ConfigError),
    ],
)
def test_system_errors_are_sorted(error, kind):
    with pytest.raises(kind), storage_errors("/somewhere"):
        raise error


def test_throttling_dressed_up_as_absence_is_temporary():
    class ServerError(Exception):
        response: ClassVar = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}

    with pytest.raises(TemporaryError), storage_errors("s3://bucket/a"):
        raise FileNotFoundError("bucket/a") from ServerError()


def test_local_path_below_a_file_is_refused(tmp_path):
    Path(tmp_path / "file").write_text("x")
    place = Place.open(str(tmp_path / "file" / "out"), config.Storage())
    with pytest.raises(StorageError, match="not usable as a path") as caught:
        check_writable(place)
    assert str(caught.value).startswith(f"{place.root}: ")


def test_place_that_cannot_be_created_is_named_as_given():
    place = Place.open("/proc/none/out", config.Storage())
    with pytest.raises(StorageError) as caught:
        check_writable(place)
    assert str(caught.value).startswith("/proc/none/out: cannot be written (ENOENT).")


def test_in_order_keeps_order_and_stays_close_to_its_reader():
    started = []

    def work(item: int) -> int:
        started.append(item)
        return item * item

    results = in_order(work, range(1000), num_threads=4)
    assert [next(results) for _ in range(10)] == [i * i for i in range(10)]
    assert len(started) <= 15
    results.close()
    assert list(in_order(work, range(20))) == [i * i for i in range(20)]
