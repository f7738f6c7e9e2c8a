"""What counts as unsent, and that no slow reader is cut off. Real sockets, with TLS too."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from service.server import http_protocol, http_server
from service.server.connections import Closed, Connections
from service.server.front import Front
from service.server.http_server import HttpServer
from service.server.limits import ConnectionLimits
from service.server.tls import make_tls
from service.server.unsent import Unsent
from tests.service.fakes import wait_until
from tests.service.server.certificates import make_certificate, needs_openssl, trust_any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

pytestmark = pytest.mark.alone

SIZE = 6_000_000  # more than the system takes at once
PIECE = 32 * 1024  # bytes that a slow reader takes
PAUSE_S = 0.008  # between two of them: the whole answer takes more than a second


class Serving:
    """A server in a thread."""

    def __init__(self, front: Front) -> None:
        self.connections = front.connections
        self._loop = uvloop.new_event_loop()
        self._server = HttpServer(answer, front)
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        serving = self._server.serve(sockets=[listener])
        self._run = self._loop.run_until_complete
        self.thread = threading.Thread(target=self._run, args=[serving], daemon=True)
        self.thread.start()

    def end(self, readers_limit_s: float = 0) -> None:
        self._loop.call_soon_threadsafe(self._server.end, readers_limit_s)

    def close(self) -> None:
        self.end()
        self.thread.join(10)
        if not self.connections.num_open:  # else uvloop waits for what is still to be sent
            self._loop.close()


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"%d" % SIZE)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * SIZE})


@contextlib.contextmanager
def serving(folder: Path | None = None, **limits: Any) -> Iterator[Serving]:
    """folder: for a certificate, where the server is to speak TLS."""
    connections = Connections(ConnectionLimits(**limits))
    tls = None if folder is None else make_tls(*make_certificate(folder))
    made = Serving(Front(tls=tls, connections=connections))
    try:
        yield made
    finally:
        made.close()


def ask(server: Serving, *headers: bytes, is_secure: bool) -> socket.socket:
    """Ask for the answer, over a connection that takes little in by itself."""
    connection = socket.socket()
    connection.settimeout(20)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    connection.connect(server.address)
    if is_secure:
        connection = trust_any().wrap_socket(connection)
    connection.sendall(b"\r\n".join([b"GET / HTTP/1.1", b"host: localhost", *headers, b"", b""]))
    return connection


def read_slowly(connection: socket.socket, pause_s: float = PAUSE_S) -> int:
    """Read the answer; return how many bytes of its body came."""
    head, _, body = connection.recv(PIECE).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    num_bytes = len(body)
    while num_bytes < SIZE and (piece := connection.recv(PIECE)):
        num_bytes += len(piece)
        time.sleep(pause_s * len(piece) / PIECE)
    return num_bytes


@needs_openssl
@pytest.mark.parametrize("headers", [[b"connection: close"], []], ids=["closed", "idle"])
def test_an_answer_over_tls_is_not_cut_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: list[bytes]
):
    """What is encrypted already waits where TLS does not count it."""
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.3)
    with (
        serving(tmp_path, idle_timeout_s=0.3) as server,
        ask(server, *headers, is_secure=True) as connection,
    ):
        assert read_slowly(connection) == SIZE


@needs_openssl
def test_who_reads_nothing_over_tls_is_dropped(tmp_path: Path):
    with (
        serving(tmp_path, idle_timeout_s=0.1, stall_limit_s=0.3) as server,
        ask(server, is_secure=True),
    ):
        wait_until(lambda: sum(server.connections.closed.values()) == 1, limit_s=5)


@needs_openssl
def test_an_answer_over_tls_on_its_way_makes_no_room(tmp_path: Path):
    with serving(tmp_path, max_connections=2) as server:
        with ask(server, is_secure=True) as reader:
            time.sleep(0.2)
            silent = []
            for _ in range(2):
                silent.append(socket.create_connection(server.address, timeout=10))
                time.sleep(0.1)
            wait_until(lambda: server.connections.closed[Closed.CAP] == 1)
            assert read_slowly(reader, 0) == SIZE
        for one in silent:
            one.close()


@pytest.mark.parametrize("is_secure", [pytest.param(True, marks=needs_openssl), False])
def test_the_server_s_end_waits_for_who_reads_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_secure: bool
):
    monkeypatch.setattr(http_server, "CLOSING_LIMIT_S", 0.3)
    with (
        serving(tmp_path if is_secure else None) as server,
        ask(server, is_secure=is_secure) as connection,
    ):
        wait_until(lambda: server.connections.num_open == 1)
        time.sleep(0.1)
        server.end(20)
        # Without TLS the system asks for more only when much of what it keeps has gone.
        assert read_slowly(connection, PAUSE_S if is_secure else 3 * PAUSE_S) == SIZE


class Transport:
    """Keeps so many bytes that it was given; has a socket."""

    def __init__(self, num_bytes: int, sock: socket.socket) -> None:
        self.num_bytes = num_bytes
        self._socket = sock

    def get_write_buffer_size(self) -> int:
        return self.num_bytes

    def get_extra_info(self, name: str) -> object:
        return {"socket": self._socket}.get(name)


def test_what_waits_is_counted_once_wherever_it_does():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        plain, secure = Transport(100, ours), Transport(20, ours)
        unsent: Any = Unsent(plain)  # type: ignore[arg-type]
        unsent.begin(secure)
        assert unsent.num_here == unsent.num_untaken == 120
        ours.sendall(b"x" * 1000)
        assert unsent.num_here == 120
        assert unsent.num_untaken >= 1120
        unsent.look()
        assert not unsent.has_moved()
        plain.num_bytes = 0
        assert unsent.has_moved()
        unsent.look()
        assert not unsent.has_moved()
        theirs.recv(1000)
        assert unsent.has_moved()
        assert unsent.num_here == unsent.num_untaken == 20
