"""A small HTTP service on loopback that answers as a test says: any status, late, cut off, or well."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request: its number from 0, path, parsed body and headers."""

    number: int
    path: str
    body: Any
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """An answer. is_cut: only half of it is sent."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    stall_s: float = 0.0
    is_cut: bool = False


class Service(ThreadingHTTPServer):
    """Answers each request with what `answer` gives for it. `asked` holds the requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[Asked], Reply], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answer = answer
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def reply_to(self, path: str, body: Any, headers: Mapping[str, str]) -> Reply:
        with self._lock:
            asked = Asked(len(self.asked), path, body, headers)
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            reply = self.answer(asked)
            time.sleep(reply.stall_s)
        finally:
            with self._lock:
                self._at_once -= 1
        return reply

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def _reply(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.server.reply_to(self.path, json.loads(data) if data else None, dict(self.headers))
        content = json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if reply.is_cut:
            self.close_connection = True
            content = content[: len(content) // 2]
        self.wfile.write(content)

    do_GET = do_POST = _reply  # noqa: N815 (names that the base class asks for)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    """The service, answering from a thread until the block ends."""
    thread = threading.Thread(target=service.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        thread.join()
        service.server_close()
