"""A small proxy before a real S3 that fails on purpose: refusals, dropped connections, answers lost or cut short."""

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

Fault = str | None
BUSY, RESET, LOSE_ANSWER, CONFLICT = "busy", "reset", "lose answer", "conflict"
BROKEN, EXPIRED, TRUNCATED = "broken", "expired", "truncated"
CARELESS, SLOW_CLOCK = "careless", "slow clock"  # never says that an object exists; is an hour behind
LATE, LATE_S = "late", 0.5
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>The proxy refuses.</Message></Error>"
_REFUSALS = {
    BUSY: (503, {}, _ERROR.format("SlowDown").encode()),
    BROKEN: (500, {}, _ERROR.format("InternalError").encode()),
    CONFLICT: (409, {}, _ERROR.format("ConditionalRequestConflict").encode()),
    EXPIRED: (403, {}, _ERROR.format("ExpiredToken").encode()),
}
_OF_THIS_HOP = {"connection", "transfer-encoding", "content-length"}


@contextlib.contextmanager
def faulty(endpoint_url: str, fault: Callable[[str, str], Fault]) -> Iterator[str]:
    """Endpoint of a proxy that asks `fault(method, path)` what to do with a request; None is to pass it on."""
    settings = {"upstream": urlsplit(endpoint_url).netloc, "fault": staticmethod(fault)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), settings))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    upstream: ClassVar[str]
    fault: ClassVar[Callable[[str, str], Fault]]

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what = self.fault(self.command, self.path)
        if what == LATE:
            time.sleep(LATE_S)
        if what == RESET:
            self.close_connection = True
            return
        if what in _REFUSALS:
            self._answer(*_REFUSALS[what])
            return
        status, headers, content = self._passed_on(body)
        if what == LOSE_ANSWER:
            self.close_connection = True
            return
        if what == CARELESS and status == 412:
            status, content = 200, b""
        if what == SLOW_CLOCK:
            headers["Date"] = formatdate(time.time() - 3600, usegmt=True)
        self.close_connection |= what == TRUNCATED
        self._answer(status, headers, content, len(content) // 2 if what == TRUNCATED else None)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle  # noqa: N815

    def _passed_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection(self.upstream)) as connection:
            # The Host header is part of what was signed, so it goes on as it came.
            headers = {key: value for key, value in self.headers.items() if key.lower() not in _OF_THIS_HOP}
            connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, end: int | None = None) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            if key.lower() not in _OF_THIS_HOP:
                self.send_header(key, value)
        size = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", size or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:end])

    def log_message(self, *_: object) -> None:
        pass
