"""A small proxy before a real S3 that fails on purpose: busy answers, dropped connections, answers that get lost."""

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = str | None
BUSY, RESET, LOSE_ANSWER = "busy", "reset", "lose answer"
_SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


@contextlib.contextmanager
def faulty(endpoint_url: str, fault: Callable[[str, str], Fault]) -> Iterator[str]:
    """Endpoint of a proxy that asks `fault(method, path)` what to do with a request; None is to pass it on."""
    upstream = urlsplit(endpoint_url).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self._body()
            what = fault(self.command, self.path)
            if what == RESET:
                self.close_connection = True
                return
            if what == BUSY:
                self._answer(503, {}, b"" if self.command == "HEAD" else _SLOW_DOWN)
                return
            connection = http.client.HTTPConnection(upstream)
            # The Host header is part of what was signed, so it goes on as it came.
            headers = {key: value for key, value in self.headers.items() if key.lower() != "transfer-encoding"}
            connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if what == LOSE_ANSWER:
                self.close_connection = True
                return
            self._answer(answer.status, dict(answer.getheaders()), content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            length = headers.pop("Content-Length", str(len(content)))
            for key, value in headers.items():
                if key.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(key, value)
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def handle_expect_100(self) -> bool:
            return True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
