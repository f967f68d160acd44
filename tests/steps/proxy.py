"""A proxy before a Ray dashboard that loses the first answer to each kind of request, after the dashboard gave it."""

import re
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_IDS = re.compile(r"alignpot-[\w-]+|_ray_pkg_\w+")
_HELLO = "/api/version"


class LossyServer(ThreadingHTTPServer):
    """Answers of the dashboard by kind of request ("POST /api/jobs/") and status; `lost` has those that none got."""

    daemon_threads = True

    def __init__(self, dashboard: str):
        self.dashboard = dashboard
        self.answers: Counter[tuple[str, int]] = Counter()
        self.lost: set[str] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: LossyServer

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        headers = {name: value for name, value in self.headers.items() if name not in ("Host", "Connection")}
        request = urllib.request.Request(self.server.dashboard + self.path, body, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            with refusal:
                status, content = refusal.code, refusal.read()
        kind = f"{self.command} {_IDS.sub('ID', self.path)}"
        self.server.answers[kind, status] += 1
        self.close_connection = True
        if self.path != _HELLO and kind not in self.server.lost:
            self.server.lost.add(kind)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _pass_on  # noqa: N815 (names that the base class asks for)

    def log_message(self, *_: object) -> None:
        """Say nothing: what is passed on holds tokens."""


@contextmanager
def losing_answers(dashboard: str) -> Iterator[LossyServer]:
    """Such a proxy before `dashboard`, on a port of its own."""
    server = LossyServer(dashboard)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
