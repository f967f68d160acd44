"""Pages as tests look at them: their elements and visible text, and what a browser says of them."""

import http.server
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

_VOID = {"meta", "line", "rect", "polygon", "polyline", "input", "br"}
_NOT_READ = {"style", "script", "pre", "code", "text"}  # the last: ticks of an axis


@dataclass
class Page(HTMLParser):
    """elements: every start tag with its attributes. text: what stands outside style, script, code and axes."""

    html: str
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if not _NOT_READ & {*self._open}:
            self.text += f"{data} "

    @property
    def numbers(self) -> set[str]:
        return numbers_in(self.text)


def numbers_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?%?", text))


def looked_at(page: Path, tmp_path: Path, *options: str) -> tuple[str, list[str], list[str]]:
    """The page after a browser has opened it, what its console says, and the paths that were asked of the server."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given):
            super().__init__(*given, directory=str(page.parent))

        def log_message(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"),
                *("--enable-logging=stderr", "--dump-dom", *options),
                f"http://127.0.0.1:{server.server_address[1]}/{page.name}",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    finally:
        server.shutdown()
        server.server_close()
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], asked
