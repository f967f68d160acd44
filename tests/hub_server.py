"""A hub on loopback: repositories as lists of commits in memory, behind the routes that huggingface_hub asks for.

It wants a token for everything, as for private datasets, and sends each file in ranges. `requests` holds what was asked
for; `before` may refuse a request.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_tests"


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """Commits by id, each the files by path; `head` is the branch main."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    head: str = ""
    private: bool = False

    def commit(self, files: dict[str, bytes], title: str = "commit") -> str:
        content = [self.head, title, sorted((path, git_oid(data)) for path, data in files.items())]
        self.head = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[self.head] = files
        self.titles.append(title)
        return self.head

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]


class Hub(ThreadingHTTPServer):
    """The server; a repository is `hub.repos["org/name"]`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.before: Callable[[str], int | None] = lambda request: None
        """Called with each request, such as `GET /path`; a status that it returns is the answer."""
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """Commit these files, and no others, to a dataset or model, which need not exist yet; the commit's id."""
        return self.repos.setdefault(name, Repo()).commit(files)


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def respond(self) -> None:
        url = urlsplit(self.path)
        path, body = unquote(url.path), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {path}")
        try:
            status = self.server.before(f"{self.command} {path}")
            if status is not None:
                raise _RefusedError(status)
            if match := re.fullmatch(r"/lfs/(\w{64})", path):
                self.server.blobs[match[1]] = body
                self._send(200, {})
            elif path == "/api/validate-yaml":
                self._send(200, {"errors": [], "warnings": []})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise _RefusedError(401, "RepoNotFound")
            elif match := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(match[1], self._commit_of(match[1], match[2]), match[3])
            elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+?)(?:/([a-z]+)(?:/([^/]+)(?:/(.*))?)?)?", path):
                self._repository(match[1], match[2], match[3] or "main", match[4] or "", parse_qs(url.query), body)
            else:
                self._account(path, body)
        except _RefusedError as refused:
            self._send(refused.status, {}, {"X-Error-Code": refused.code})

    do_GET = do_HEAD = do_POST = do_PUT = respond  # noqa: N815 - the names are http.server's

    def _send(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _account(self, path: str, body: bytes) -> None:
        if path == "/api/whoami-v2":
            self._send(200, {"type": "user", "name": "org", "orgs": []})
        elif path == "/api/repos/create":
            self._created(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._send(200, self._lfs_batch(json.loads(body)["objects"]))
        else:
            raise _RefusedError(404)

    def _repository(
        self, name: str, verb: str | None, revision: str, below: str, query: dict[str, list[str]], body: bytes
    ) -> None:
        commit = self._commit_of(name, revision)
        if verb in (None, "revision"):
            self._send(200, {"id": name, "sha": commit, "private": self.server.repos[name].private})
        elif verb == "tree":
            recursive = query.get("recursive", [""])[0].lower() in ("true", "1")
            self._send(200, self._tree(self.server.repos[name].commits[commit], below, recursive=recursive))
        elif verb == "preupload":
            paths = [each["path"] for each in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".parquet") else "regular" for path in paths}
            told = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            self._send(200, {"files": told})
        elif verb == "commit":
            self._committed(name, [json.loads(line) for line in body.splitlines() if line.strip()])
        else:
            raise _RefusedError(404)

    def _commit_of(self, name: str, revision: str) -> str:
        repo = self.server.repos.get(name)
        if repo is None:
            raise _RefusedError(404, "RepoNotFound")
        commit = repo.head if revision == "main" else repo.tags.get(revision, revision)
        if commit not in repo.commits:
            raise _RefusedError(404, "RevisionNotFound")
        return commit

    def _created(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'org'}/{asked['name']}"
        is_new = name not in self.server.repos
        if is_new:
            self.server.add(name, {".gitattributes": b""})
            self.server.repos[name].private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self._send(200 if is_new else 409, {"url": f"{self.server.url}/datasets/{name}", "name": name, "id": name})

    def _lfs_batch(self, objects: list[dict[str, Any]]) -> dict[str, Any]:
        def answer(oid: str) -> dict[str, Any]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{oid}", "header": {}}}
            return {} if oid in self.server.blobs else {"actions": upload}

        return {
            "transfer": "basic",
            "objects": [{**{k: o[k] for k in ("oid", "size")}, **answer(o["oid"])} for o in objects],
        }

    def _tree(self, files: dict[str, bytes], below: str, *, recursive: bool) -> list[dict[str, Any]]:
        within = f"{below.rstrip('/')}/" if below else ""
        folders = {"/".join(path.split("/")[:depth]) for path in files for depth in range(1, path.count("/") + 1)}
        found = [path for path in sorted({*files, *folders}) if path.startswith(within)]
        if within and not found:
            raise _RefusedError(404, "EntryNotFound")
        return [
            self._entry(path, files[path])
            if path in files
            else {"type": "directory", "path": path, "oid": "0", "size": 0}
            for path in found
            if recursive or "/" not in path[len(within) :]
        ]

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
        if path.endswith(".parquet"):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _file(self, name: str, commit: str, path: str) -> None:
        files = self.server.repos[name].commits[commit]
        if path not in files:
            raise _RefusedError(404, "EntryNotFound")
        data = files[path]
        headers = {"ETag": f'"{git_oid(data)}"', "Accept-Ranges": "bytes", "X-Repo-Commit": commit}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self._send(200, data, headers)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            raise _RefusedError(416)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._send(206, data[start : end + 1], headers)

    def _committed(self, name: str, lines: list[dict[str, Any]]) -> None:
        header = lines[0]["value"]
        with self.server.lock:
            repo = self.server.repos[name]
            if header.get("parentCommit") not in (None, repo.head):
                raise _RefusedError(412)
            files = dict(repo.files)
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.blobs[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            commit = repo.commit(files, header["summary"])
        url = f"{self.server.url}/datasets/{name}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url})
