"""A local server that speaks as much of the hub's HTTP API as the loaders use.

Serves repositories made in a test: branches of files, by commit, with the hub's headers. The real
client of `huggingface_hub` talks to it through HF_ENDPOINT.
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass
class HubRepository:
    """Branches of one repository: name → file name → content."""

    branches: Mapping[str, Mapping[str, bytes]]
    gated: bool = False

    def commit_of(self, revision: str) -> str | None:
        for branch, files in self.branches.items():
            commit = hashlib.sha1(branch.encode() + b"".join(files.values())).hexdigest()
            if revision in (branch, commit):
                return commit
        return None

    def files_at(self, revision: str) -> Mapping[str, bytes]:
        wanted = self.commit_of(revision)
        return next(f for b, f in self.branches.items() if self.commit_of(b) == wanted)


@dataclass
class Hub:
    """The server's state, which a test may change while it runs."""

    repositories: dict[str, HubRepository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub on a free port of the loopback interface."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *_: object) -> None:
            return

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            status, headers, body = respond(hub, path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


Answer = tuple[int, dict[str, str], bytes]


def respond(hub: Hub, path: str) -> Answer:
    """Answer one path as the hub does."""
    name = next((n for n in hub.repositories if f"/{n}/" in f"{path}/"), None)
    if name is None:
        return _error(401, "RepoNotFound")
    repository = hub.repositories[name]
    if repository.gated:
        return _error(403, "GatedRepo")
    _, _, rest = path.partition(f"/{name}")
    if rest == "/refs":
        branches = [
            {"name": b, "ref": f"refs/heads/{b}", "targetCommit": repository.commit_of(b)}
            for b in repository.branches
        ]
        return _json({"branches": branches, "tags": [], "converts": []})
    kind, _, rest = rest.strip("/").partition("/")
    if path.startswith("/api/"):
        return _api(name, repository, kind, rest or "main")
    revision, _, file = rest.rpartition("/")
    return _file(repository, revision, file)


def _api(name: str, repository: HubRepository, kind: str, revision: str) -> Answer:
    commit = repository.commit_of(revision)
    if commit is None:
        return _error(404, "RevisionNotFound")
    files = repository.files_at(revision)
    if kind == "tree":
        return _json(
            [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in files.items()
            ]
        )
    siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
    return _json({"id": name, "sha": commit, "siblings": siblings})


def _file(repository: HubRepository, revision: str, file: str) -> Answer:
    commit = repository.commit_of(revision)
    if commit is None:
        return _error(404, "RevisionNotFound")
    content = repository.files_at(revision).get(file)
    if content is None:
        return _error(404, "EntryNotFound")
    etag = hashlib.sha1(content).hexdigest()
    return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, content


def _json(value: object) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _error(status: int, code: str) -> Answer:
    return status, {"X-Error-Code": code, "X-Error-Message": code}, b""
