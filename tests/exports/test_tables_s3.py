"""The same on a real S3: Iceberg by its REST catalog, Delta and Lance, with publishers that are killed."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import publish
from pipeline.config import Storage
from pipeline.errors import StorageError, TemporaryError
from tests.exports.conftest import good_rows, write_subset
from tests.fixtures_storage import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.s3]
KINDS = ["iceberg", "delta", "lance"]
FROM_S3 = [("iceberg", True), ("delta", False), ("lance", True)]
OTHERS = [pytest.param(kind, not from_s3, marks=pytest.mark.soak) for kind, from_s3 in FROM_S3]


class TablesOnS3:
    """Tables of each format on the server."""

    def __init__(self, s3: S3Server) -> None:
        self.s3, self.root = s3, s3.url("tables")
        self.options = {"aws_endpoint": s3.endpoint_url, "aws_allow_http": "true", "aws_region": "us-east-1"}
        self.name = f"prefs.{self.root.rpartition('-')[2]}_{time.time_ns()}"

    def url(self, kind: str) -> str:
        return f"iceberg://weed/{self.name}" if kind == "iceberg" else f"{kind}://{self.root}/{kind}"

    def catalog(self):
        from pyiceberg.catalog import load_catalog
        from pyiceberg.utils.config import Config

        return load_catalog("weed", **Config().get_catalog_config("weed"))

    def found(self, kind: str) -> tuple[int, int]:
        """How many rows, and in how many commits."""
        if kind == "iceberg":
            if not self.catalog().table_exists(self.name):
                return 0, 0
            table = self.catalog().load_table(self.name)
            return table.scan().to_arrow().num_rows, len(table.snapshots())
        if kind == "delta":
            from deltalake import DeltaTable

            if not DeltaTable.is_deltatable(f"{self.root}/delta", storage_options=self.options):
                return 0, 0
            table = DeltaTable(f"{self.root}/delta", storage_options=self.options)
            return table.to_pyarrow_table().num_rows, table.version() + 1
        import lance

        try:
            dataset = lance.dataset(f"{self.root}/lance", storage_options=self.options)
        except ValueError:
            return 0, 0
        return dataset.count_rows(), dataset.version


@pytest.fixture
def tables(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> TablesOnS3:
    described = {
        "TYPE": "rest",
        "URI": s3.iceberg_url,
        "WAREHOUSE": "s3://warehouse/",
        "CREDENTIAL": f"{s3.access_key}:{s3.secret_key}",
        "S3__ENDPOINT": s3.endpoint_url,
        "S3__ACCESS_KEY_ID": s3.access_key,
        "S3__SECRET_ACCESS_KEY": s3.secret_key,
        "S3__REGION": "us-east-1",
    }
    for key, value in described.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__WEED__{key}", value)
    found = TablesOnS3(s3)
    found.catalog().create_namespace_if_not_exists("prefs")
    return found


@pytest.mark.parametrize(("kind", "from_s3"), [*FROM_S3, *OTHERS])
def test_published_once_appended_to_and_replaced(kind: str, from_s3: bool, tables: TablesOnS3, tmp_path: Path):
    storage = tables.s3.storage
    folder = tables.s3.url("subset") if from_s3 else str(tmp_path)
    subset = write_subset(f"{folder}/a", good_rows(), storage)
    other = write_subset(f"{folder}/b", good_rows(7), storage, fingerprint={"scored": "def"})
    assert publish(subset, tables.url(kind), storage=storage).startswith("published 12 pairs")
    assert publish(subset, tables.url(kind), storage=storage).startswith("already published")
    publish(other, tables.url(kind), storage=storage)
    assert tables.found(kind) == (19, 2)
    publish(other, tables.url(kind), mode="replace", storage=storage)
    assert tables.found(kind) == (7, 3)
    if kind == "iceberg":
        tasks = tables.catalog().load_table(tables.name).scan().plan_files()
        assert {task.file.file_path.startswith(folder) for task in tasks} == {from_s3}


@pytest.mark.parametrize("kind", ["iceberg", *(pytest.param(k, marks=pytest.mark.soak) for k in ("delta", "lance"))])
def test_killed_publishers_leave_one_commit_and_no_key(kind: str, tables: TablesOnS3):
    storage = tables.s3.storage
    subset = write_subset(tables.s3.url("subset"), good_rows(), storage)
    command = [sys.executable, "-m", "pipeline.cli", "publish", subset, tables.url(kind)]
    command += ["--endpoint-url", tables.s3.endpoint_url]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    for wait in (3.0, 4.0, 5.0):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        told, _ = process.communicate()
        assert tables.s3.secret_key not in told
        assert tables.found(kind) in [(0, 0), (12, 1)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        for _ in range(2)
    ]
    told = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sum("published 12 pairs" in text for text in told) <= 1
    assert tables.found(kind) == (12, 1)


@contextlib.contextmanager
def losing_answers(catalog: str, status: int) -> Iterator[str]:
    """A proxy before a REST catalog. Commits reach it, and their answers are replaced by a status, or by none for 0."""

    class Proxy(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(catalog.removeprefix("http://"))
            connection.request(self.command, self.path, body, {**self.headers})
            answer = connection.getresponse()
            data, found = answer.read(), answer.status
            if self.command == "POST" and "/tables" in self.path and b"add-snapshot" in body:
                if not status:
                    self.connection.close()
                    return
                data, found = b'{"error": {"message": "lost", "type": "lost", "code": %d}}' % status, status
            self.send_response(found)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

        do_GET = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("age", "status"),
    [
        *(("new", status) for status in (500, 429)),
        *(("old", status) for status in (0, 503)),
        *(pytest.param("new", status, marks=pytest.mark.soak) for status in (0, 503, 504)),
        *(pytest.param("old", status, marks=pytest.mark.soak) for status in (500, 429, 504)),
    ],
)
def test_commit_of_a_rest_catalog_whose_answer_is_lost(age: str, status: int, tables: TablesOnS3, monkeypatch):
    storage = tables.s3.storage
    subset = write_subset(tables.s3.url("subset"), good_rows(), storage)
    if age == "old":
        other = write_subset(tables.s3.url("subset"), good_rows(7), storage, fingerprint={"scored": "def"})
        publish(other, tables.url("iceberg"), storage=storage)
    with losing_answers(tables.s3.iceberg_url, status) as url, monkeypatch.context() as patch:
        patch.setenv("PYICEBERG_CATALOG__WEED__URI", url)
        with contextlib.suppress(TemporaryError):
            assert "in the meantime" in publish(subset, tables.url("iceberg"), storage=storage)
    assert publish(subset, tables.url("iceberg"), storage=storage).startswith("already published")
    assert tables.found("iceberg") == ((19, 2) if age == "old" else (12, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_key_and_dead_server(kind: str, tables: TablesOnS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    subset = write_subset(str(tmp_path / "subset"), good_rows())
    storage = tables.s3.storage
    with monkeypatch.context() as patch:
        for name in ("AWS_SECRET_ACCESS_KEY", "PYICEBERG_CATALOG__WEED__S3__SECRET_ACCESS_KEY"):
            patch.setenv(name, "another-canary")
        patch.setenv("PYICEBERG_CATALOG__WEED__CREDENTIAL", f"{tables.s3.access_key}:another-canary")
        with pytest.raises(StorageError) as caught:
            publish(subset, tables.url(kind), storage=storage)
        assert "canary" not in str(caught.value)
    dead = Storage(endpoint_url="http://127.0.0.1:9", region="us-east-1", max_attempts=1)
    with monkeypatch.context() as patch:
        patch.setenv("PYICEBERG_CATALOG__WEED__URI", "http://127.0.0.1:9")
        with pytest.raises(TemporaryError):
            publish(subset, tables.url(kind), storage=dead)
    assert tables.found(kind) == (0, 0)
