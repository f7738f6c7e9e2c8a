"""A local server that speaks as much of the hub's HTTP API as the loaders use.

Serves repositories made in a test: branches and tags of files, by commit, with the hub's headers,
ranges, pages and redirects; slowly, behind a token, or with faults where a test asks for it. The
real client of `huggingface_hub` talks to it through HF_ENDPOINT.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What the hub keeps by its sha256 (git-lfs); everything else by git's own hash.
LARGE_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".model")
_PIECE = 1 << 16


@dataclass(frozen=True)
class SparseFile:
    """A file whose first bytes are given and whose rest is zeros that nobody stores."""

    head: bytes
    num_bytes: int

    def __len__(self) -> int:
        return self.num_bytes

    def __getitem__(self, wanted: slice) -> bytes:
        start, stop, _ = wanted.indices(self.num_bytes)
        return self.head[start:stop].ljust(max(0, stop - start), b"\0")

    @cached_property
    def sha256(self) -> str:
        """Stand for the hash of the whole, which would take seconds to compute."""
        return hashlib.sha256(b"%d " % self.num_bytes + self.head).hexdigest()


Content = bytes | SparseFile


def sha256_of(content: Content) -> str:
    """Name a large file as the hub does."""
    if isinstance(content, SparseFile):
        return content.sha256
    return hashlib.sha256(content).hexdigest()


def blob_id_of(content: bytes) -> str:
    """Name a small file as git does."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str, content: Content) -> bool:
    """Tell whether the hub keeps a file by its sha256."""
    return isinstance(content, SparseFile) or path.lower().endswith(LARGE_SUFFIXES)


@dataclass
class HubRepository:
    """Branches of one repository: name → file name → content. Replace it to move a branch."""

    branches: Mapping[str, Mapping[str, Content]]
    gated: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)  # tag → branch whose commit it names
    token: str | None = None  # set: the repository is private, and this opens it

    @cached_property
    def commits(self) -> dict[str, str]:
        """Every branch and tag with its commit."""
        commits = {}
        for branch, files in self.branches.items():
            listing = "".join(f"{path} {sha256_of(files[path])}\n" for path in sorted(files))
            commits[branch] = hashlib.sha1(f"{branch}\n{listing}".encode()).hexdigest()
        return commits | {tag: commits[branch] for tag, branch in self.tags.items()}

    def commit_of(self, revision: str) -> str | None:
        if revision in self.commits.values():
            return revision
        return self.commits.get(revision)

    def files_at(self, revision: str) -> Mapping[str, Content]:
        wanted = self.commit_of(revision)
        return next(f for b, f in self.branches.items() if self.commits[b] == wanted)


@dataclass
class Fault:
    """What befalls the next requests whose path contains a text, instead of a whole answer."""

    path: str = ""
    times: int = 1
    status: int | None = None  # sent in place of the answer
    retry_after_s: int | None = None
    cut_after: int | None = None  # bytes of the body that go out before the connection is cut
    ends_after: int | None = None  # bytes that go out as if they were all
    damages: bool = False  # the first byte of the body is another one


@dataclass
class Hub:
    """The server's state, which a test may change while it runs."""

    repositories: dict[str, HubRepository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)  # the same, in detail
    url: str = ""
    latency_s: float = 0.0  # before every answer
    tree_page: int = 1000  # entries of a listing that one answer holds
    tree_ends: bool = True  # else every page of a listing names itself as the next one
    redirects_large_files: bool = False  # to another host, as the real hub does
    knows_ranges: bool = True  # else a file is always sent whole
    pause_s: float = 0.0  # between pieces of 64 KiB
    faults: list[Fault] = field(default_factory=list)  # the first that fits befalls a request
    num_bytes_sent: int = 0  # of bodies
    max_at_once: int = 0  # most requests that waited for their answers at one time
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def storage_url(self) -> str:
        """Name the same server otherwise: another host, as far as a client can tell."""
        return self.url.replace("127.0.0.1", "localhost")

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request that waits for its answer.

        Until before the first byte of the answer: a client that has read it may send its next
        request before this thread goes on, and the two would count as one too many.
        """
        with self._lock:
            self._at_once += 1
            self.max_at_once = max(self.max_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def next_fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.path in path:
                    fault.times -= 1
                    return fault
        return None


@dataclass(frozen=True)
class Request:
    """What of a request decides its answer."""

    path: str  # still quoted: a branch may contain a slash
    query: Mapping[str, list[str]]
    token: str | None
    range: tuple[int, int] | None  # first byte, and the one after the last
    host: str = ""  # that was asked


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Content = b""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub on a free port of the loopback interface."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body go out as two packets; the kernel would hold the second one back.
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *_: object) -> None:
            return

        def _answer(self, *, with_body: bool) -> None:
            with hub.counted():
                request = _read_request(self)
                hub.asked.append(request)
                hub.requests.append(f"{self.command} {unquote(request.path)}")
                time.sleep(hub.latency_s)
                fault = hub.next_fault(unquote(request.path))
                answer = _faulty(fault) if fault and fault.status else respond(hub, request)
                answer = _damaged(fault, answer) if fault else answer
            self.send_response(answer.status)
            headers = {"Content-Length": str(len(answer.body)), **answer.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self._send(answer.body, fault.cut_after if fault else None)

        def _send(self, body: Content, cut_after: int | None) -> None:
            end = len(body) if cut_after is None else min(cut_after, len(body))
            try:
                for start in range(0, end, _PIECE):
                    self.wfile.write(body[start : min(start + _PIECE, end)])
                    hub.num_bytes_sent += min(_PIECE, end - start)
                    time.sleep(hub.pause_s)
                self.wfile.flush()
            except ConnectionError:
                self.close_connection = True
            if cut_after is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _read_request(handler: BaseHTTPRequestHandler) -> Request:
    parts = urlsplit(handler.path)
    scheme, _, token = handler.headers.get("Authorization", "").partition(" ")
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    span = None
    if wanted is not None:
        span = int(wanted[1]), int(wanted[2]) + 1 if wanted[2] else 1 << 62
    return Request(
        path=parts.path,
        query=parse_qs(parts.query),
        token=token if scheme == "Bearer" else None,
        range=span,
        host=handler.headers.get("Host", ""),
    )


def _faulty(fault: Fault) -> Answer:
    after = fault.retry_after_s
    return Answer(fault.status or 500, {} if after is None else {"Retry-After": str(after)})


def _damaged(fault: Fault, answer: Answer) -> Answer:
    body = answer.body
    if fault.ends_after is not None:
        body = body[: fault.ends_after]
    if fault.damages:
        body = bytes([body[0:1][0] ^ 1]) + body[1 : len(body)]
    return Answer(answer.status, answer.headers, body)


def respond(hub: Hub, request: Request) -> Answer:
    """Answer one request as the hub does."""
    parts = [unquote(part) for part in request.path.strip("/").split("/")]
    if parts[0] == "stored":
        return _stored(hub, parts[1], request)
    is_api = parts[:2] == ["api", "models"]
    if parts == ["api", "models"]:
        return _search(hub, request)
    parts = parts[2:] if is_api else parts
    name = next((n for n in hub.repositories if parts[: n.count("/") + 1] == n.split("/")), None)
    if name is None:
        return _error(401, "RepoNotFound")
    repository, rest = hub.repositories[name], parts[name.count("/") + 1 :]
    if repository.token is not None and request.token != repository.token:
        return _error(401, "RepoNotFound")
    if repository.gated:
        return _error(403, "GatedRepo")
    if not is_api:
        return _resolve(hub, repository, rest[1], "/".join(rest[2:]), request)
    if rest == ["refs"]:
        return _refs(repository)
    kind, revision = (*rest, "main", "main")[:2]
    if repository.commit_of(revision) is None:
        return _error(404, "RevisionNotFound")
    if kind == "tree":
        return _tree(hub, repository, revision, request)
    return _info(name, repository, revision)


def _search(hub: Hub, request: Request) -> Answer:
    """List the repositories of an author, or those whose names hold a text."""
    owner = request.query.get("author", [""])[0]
    text = request.query.get("search", [""])[0].lower()
    names = [n for n in hub.repositories if n.startswith(f"{owner}/") or not owner]
    return _json([{"id": n, "_id": n} for n in names if text in n.lower()])


def _refs(repository: HubRepository) -> Answer:
    def listed(names: Mapping[str, object], where: str) -> list[dict[str, str]]:
        commits = repository.commits
        return [{"name": n, "ref": f"{where}/{n}", "targetCommit": commits[n]} for n in names]

    branches = listed(repository.branches, "refs/heads")
    return _json(
        {"branches": branches, "tags": listed(repository.tags, "refs/tags"), "converts": []}
    )


def _tree(hub: Hub, repository: HubRepository, revision: str, request: Request) -> Answer:
    entries = [_entry(path, c) for path, c in repository.files_at(revision).items()]
    start = int(request.query.get("cursor", ["0"])[0])
    end = start + hub.tree_page if hub.tree_ends else start
    more = f'<{hub.url}{request.path}?recursive=True&cursor={end}>; rel="next"'
    page = _json(entries[start : start + hub.tree_page])
    return Answer(200, {"Link": more} if end < len(entries) else {}, page.body)


def _entry(path: str, content: Content) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content)}
    if not is_large(path, content):
        assert isinstance(content, bytes)
        return {**entry, "oid": blob_id_of(content)}
    sha256 = sha256_of(content)
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
    )
    lfs = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return {**entry, "oid": blob_id_of(pointer.encode()), "lfs": lfs}


def _info(name: str, repository: HubRepository, revision: str) -> Answer:
    siblings = [
        {
            "rfilename": e["path"],
            "size": e["size"],
            "blobId": e["oid"],
            **(
                {"lfs": {**e["lfs"], "sha256": e["lfs"]["oid"]}}
                if isinstance(e.get("lfs"), dict)
                else {}
            ),
        }
        for e in (_entry(path, c) for path, c in repository.files_at(revision).items())
    ]
    return _json({"id": name, "sha": repository.commit_of(revision), "siblings": siblings})


def _resolve(
    hub: Hub, repository: HubRepository, revision: str, file: str, request: Request
) -> Answer:
    commit = repository.commit_of(revision)
    if commit is None:
        return _error(404, "RevisionNotFound")
    content = repository.files_at(revision).get(file)
    if content is None:
        return _error(404, "EntryNotFound")
    if not is_large(file, content):
        assert isinstance(content, bytes)
        return _content(hub, content, blob_id_of(content), request, {"X-Repo-Commit": commit})
    sha256 = sha256_of(content)
    linked = {
        "X-Repo-Commit": commit,
        "X-Linked-Size": str(len(content)),
        "X-Linked-Etag": f'"{sha256}"',
    }
    if hub.redirects_large_files:
        return Answer(302, {**linked, "Location": f"{hub.storage_url}/stored/{sha256}"})
    return _content(hub, content, sha256, request, linked)


def _stored(hub: Hub, sha256: str, request: Request) -> Answer:
    """Give a large file by its hash; nobody need say who asks, as with a signed address."""
    for repository in hub.repositories.values():
        for files in repository.branches.values():
            for path, content in files.items():
                if is_large(path, content) and sha256_of(content) == sha256:
                    return _content(hub, content, sha256, request, {})
    return _error(404, "EntryNotFound")


def _content(
    hub: Hub, content: Content, etag: str, request: Request, headers: Mapping[str, str]
) -> Answer:
    headers = {**headers, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    if request.range is None or not hub.knows_ranges:
        return Answer(200, headers, content)
    size = len(content)
    start, stop = request.range
    stop = min(stop, size)
    if start >= size:
        return Answer(416, {**headers, "Content-Range": f"bytes */{size}"})
    part = content[start:stop] if stop - start < size else content
    return Answer(206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}, part)


def _json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _error(status: int, code: str) -> Answer:
    return Answer(status, {"X-Error-Code": code, "X-Error-Message": code})
