"""A server of OpenAI's API that answers what a test says, over real sockets, and notes requests."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

LIMIT_S = 30
DONE = b"data: [DONE]\n\n"
UNTIL_LEFT = object()  # among the pieces of a reply: wait until the client has closed


@dataclass
class Reply:
    """What a path answers."""

    pieces: list[Any] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Asked:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: Any


class ScriptedServer:
    """Answers each path by its reply; several replies to one path come in turn."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.asked: list[Asked] = []
        self.has_left = threading.Event()  # a client closed where UNTIL_LEFT stands
        self.url = ""

    def models(self, *names: str) -> None:
        self.reply("/v1/models", as_json({"data": [{"id": name} for name in names]}))

    def reply(self, path: str, *pieces: Any, status: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.replies.setdefault(path, []).append(Reply(list(pieces), status, named))

    def chat(self, *pieces: Any, **headers: str) -> None:
        self.reply("/v1/chat/completions", *pieces, **headers)

    def complete(self, *pieces: Any) -> None:
        self.reply("/v1/completions", *pieces)

    @property
    def bodies(self) -> list[Any]:
        """The bodies of what was posted."""
        return [asked.body for asked in self.asked if asked.body is not None]

    def take(self, path: str) -> Reply:
        waiting = self.replies.get(path) or [Reply([], 404)]
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


@contextmanager
def scripted_server(tls: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    """Run one while the block does; its `url` is that of HTTP with `tls`, too."""
    server = ScriptedServer()
    handler = type("Handler", (_Handler,), {"script": server})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        if tls is not None:
            http.socket = tls.wrap_socket(http.socket, server_side=True)
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        http.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    script: ScriptedServer

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: Any) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.script.asked.append(Asked(self.path, headers, body))
        reply = self.script.take(self.path)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.connection.settimeout(LIMIT_S)
        for piece in reply.pieces:
            if piece is UNTIL_LEFT:
                if self.connection.recv(1) == b"":
                    self.script.has_left.set()
                return
            self.wfile.write(piece)

    def log_message(self, *arguments: object) -> None:
        pass


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def event(value: Any) -> bytes:
    return b"data: " + as_json(value) + b"\n\n"


def says(text: str, finish_reason: str | None = None) -> bytes:
    """Make a piece of a chat's answer."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return event({"choices": [choice]})


def thinks(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"reasoning_content": text}}]})


def goes_on(text: str, finish_reason: str | None = None) -> bytes:
    """Make a piece of a completion."""
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})


def counts(prompt: int, answer: int) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": answer}
    return event({"choices": [], "usage": usage})


def error(message: str, code: str | None = None) -> bytes:
    return as_json({"error": {"message": message, "type": "x", "param": None, "code": code}})


END = says("", "stop") + DONE
COMPLETION_END = goes_on("", "stop") + DONE
