"""URLs that open, URLs that are refused, and faults told in words that help and give nothing away."""

import pickle
import traceback
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline import config
from pipeline.errors import AlignpotError, ConfigError, StorageError, TemporaryError
from pipeline.storage.filesystem import (
    check_readable,
    check_writable,
    display,
    in_order,
    list_sizes,
    open_filesystem,
    read_bytes,
    storage_errors,
)
from tests.storage.fault_proxy import BUSY, faulty

CANARY = "canary-5d0c-secret-access-key"


@pytest.mark.parametrize(
    ("url", "path"),
    [("/a/b/../c/", "/a/c"), ("file:///a/b", "/a/b"), ("FILE:///a//b/.", "/a/b"), ("s3://bucket/a/b/", "bucket/a/b")],
)
def test_paths_are_normalised(url, path):
    assert open_filesystem(url, config.Storage())[1] == path


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fs, root = open_filesystem("out/../parts", config.Storage())
    assert root == str(tmp_path / "parts")
    assert display(fs, root) == root


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
        open_filesystem(url, config.Storage())
    assert CANARY not in str(caught.value)


def test_endpoint_with_credentials_is_refused():
    unchecked = config.Storage.model_construct(endpoint_url=f"http://me:{CANARY}@host")
    with pytest.raises(ConfigError, match="endpoint_url") as caught:
        open_filesystem("s3://bucket/a", unchecked)
    assert CANARY not in str(caught.value)


@pytest.mark.s3
def test_s3_filesystem_survives_pickling(s3):
    fs, root = open_filesystem(s3.url("pickle"), s3.storage)
    check_writable(*pickle.loads(pickle.dumps((fs, root))))


def test_writable_place_passes_and_keeps_no_trace(place):
    fs, root = place
    check_writable(fs, root)
    assert list_sizes(fs, root) == {}


def test_readable_place_passes_and_an_empty_one_is_named(place):
    fs, root = place
    with pytest.raises(StorageError, match="not there"):
        check_readable(fs, root)
    fs.makedirs(f"{root}/sub", exist_ok=True)
    fs.pipe_file(f"{root}/sub/a", b"x")
    check_readable(fs, root)
    check_readable(fs, f"{root}/sub/a")
    assert list_sizes(fs, root) == {"sub/a": 1}


@pytest.mark.s3
def test_sibling_prefix_does_not_make_a_place_readable(s3):
    fs, root = open_filesystem(s3.url("twin"), s3.storage)
    fs.pipe_file(f"{root}-longer/a", b"x")
    with pytest.raises(StorageError, match="not there"):
        check_readable(fs, root)


def _refused(fs, root: str) -> list[AlignpotError]:
    """What every operation raises; each must fail."""
    found = []
    for act in (check_readable, check_writable, read_bytes, list_sizes):
        with pytest.raises(StorageError) as caught:
            act(fs, root)
        trace = "".join(traceback.format_exception(caught.value))
        assert "canary" not in trace
        assert "canary" not in str(caught.value)
        found.append(caught.value)
    return found


@pytest.mark.s3
def test_missing_bucket_is_named(s3):
    for error in _refused(*open_filesystem("s3://no-such-bucket-here/a", s3.storage)):
        assert "bucket no-such-bucket-here does not exist" in str(error)
        assert error.exit_code == 2


@pytest.mark.s3
def test_missing_credentials_are_named(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for error in _refused(*open_filesystem(s3.url(), s3.storage)):
        assert "no usable credentials" in str(error)
        assert "AWS_ACCESS_KEY_ID" in str(error)


@pytest.mark.s3
@pytest.mark.parametrize("key", ["alignpot-test-key", "unknown-key"])
def test_wrong_credentials_are_told_without_the_secret(s3, monkeypatch, key):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    for error in _refused(*open_filesystem(s3.url(), s3.storage)):
        assert "403" in str(error)


@pytest.mark.s3
def test_reader_without_write_permission_is_refused_before_work_starts(s3, monkeypatch):
    url = s3.url("readonly")
    fs, root = open_filesystem(url, s3.storage)
    fs.pipe_file(f"{root}/a", b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.reader[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.reader[1])
    fs, root = open_filesystem(url, s3.storage)
    check_readable(fs, root)
    with pytest.raises(StorageError, match=r"access to bucket alignpot-tests is denied.*s3:PutObject"):
        check_writable(fs, root)


@pytest.mark.s3
def test_throttled_listing_is_not_an_empty_folder(s3):
    with faulty(s3.endpoint_url, lambda *_: BUSY) as endpoint_url:
        storage = s3.storage.model_copy(update={"endpoint_url": endpoint_url, "max_attempts": 1})
        for act in (list_sizes, check_readable, check_writable):
            fs, root = open_filesystem(s3.url("busy"), storage)
            with pytest.raises(TemporaryError):
                act(fs, root)


def test_unreachable_store_is_temporary(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    storage = config.Storage(endpoint_url="http://127.0.0.1:1", region="us-east-1", max_attempts=1)
    fs, root = open_filesystem("s3://bucket/a", storage)
    with pytest.raises(TemporaryError, match="cannot be reached") as caught:
        read_bytes(fs, root)
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
    fs, root = open_filesystem(str(tmp_path / "file" / "out"), config.Storage())
    with pytest.raises(StorageError, match="not usable as a path") as caught:
        check_writable(fs, root)
    assert str(caught.value).startswith(f"{root}: ")


def test_place_that_cannot_be_created_is_named_as_given():
    fs, root = open_filesystem("/proc/none/out", config.Storage())
    with pytest.raises(StorageError) as caught:
        check_writable(fs, root)
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
