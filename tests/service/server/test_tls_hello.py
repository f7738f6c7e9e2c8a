"""Connections that speak TLS, and those that only might: real sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import uvloop

from service.server.connections import Closed, Connections
from service.server.front import Front
from service.server.http_server import HttpServer
from service.server.limits import ConnectionLimits
from service.server.tls import make_tls
from tests.service.fakes import wait_until
from tests.service.server.certificates import make_certificate, needs_openssl, trust_any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

pytestmark = needs_openssl

LIVE = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"


@contextlib.contextmanager
def fronted(folder: Path, **limits: float) -> Iterator[tuple[Connections, tuple[str, int]]]:
    """Run a server that speaks TLS; give its connections and its address."""
    connections = Connections(ConnectionLimits(**limits))  # type: ignore[arg-type]
    front = Front(tls=make_tls(*make_certificate(folder)), connections=connections)
    loop = uvloop.new_event_loop()
    server = HttpServer(answer, front)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    serving = server.serve(sockets=[listener])
    thread = threading.Thread(target=loop.run_until_complete, args=[serving])
    thread.start()
    try:
        yield connections, address
    finally:
        loop.call_soon_threadsafe(server.end)
        thread.join()
        loop.close()


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def speak(address: tuple[str, int]) -> ssl.SSLSocket:
    plain = socket.create_connection(address, timeout=10)
    return trust_any().wrap_socket(plain)


class StepwiseTls:
    """A client that speaks TLS step by step: what it says is sent with its next sending."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trust_any().wrap_bio(self._incoming, self._outgoing)
        self._plain = socket.create_connection(address, timeout=10)

    def __enter__(self) -> StepwiseTls:
        return self

    def __exit__(self, *_: object) -> None:
        self._plain.close()

    def say_hello(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self._plain.sendall(self._outgoing.read())

    def receive(self) -> None:
        received = self._plain.recv(65536)
        assert received, "the server has closed the connection"
        self._incoming.write(received)

    def finish_handshake(self) -> None:
        """Read until the handshake is done; leave its end unsent."""
        while True:
            try:
                return self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.receive()

    def send(self, data: bytes) -> None:
        self._tls.write(data)
        self._plain.sendall(self._outgoing.read())

    def read(self, most: int) -> bytes:
        while True:
            try:
                return self._tls.read(most)
            except ssl.SSLWantReadError:
                self.receive()


def test_a_connection_counts_before_it_says_hello_and_once_afterwards(tmp_path: Path):
    with fronted(tmp_path) as (connections, address):
        with socket.create_connection(address), speak(address) as speaking:
            speaking.sendall(LIVE)
            assert speaking.recv(100).startswith(b"HTTP/1.1 200")
            wait_until(lambda: connections.num_open == 2)
            assert not connections.closed
        wait_until(lambda: connections.num_open == 0)
        assert connections.closed == {Closed.TLS: 1, Closed.CLIENT: 1}


def test_those_that_say_no_hello_make_room(tmp_path: Path):
    with fronted(tmp_path, max_connections=3) as (connections, address):
        silent = [socket.create_connection(address, timeout=10) for _ in range(3)]
        wait_until(lambda: connections.num_open == 3)
        with speak(address) as speaking:
            speaking.sendall(LIVE)
            assert speaking.recv(100).startswith(b"HTTP/1.1 200")
            assert connections.num_open == 3
            assert connections.closed == {Closed.CAP: 1}
        for one in silent:
            one.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what has come")
def test_who_has_begun_to_say_hello_is_not_the_first_to_make_room(tmp_path: Path):
    with (
        fronted(tmp_path, max_connections=3) as (connections, address),
        StepwiseTls(address) as slow,
        contextlib.ExitStack() as silent,
    ):
        slow.say_hello()
        slow.receive()  # so the server has read it
        for _ in range(4):
            silent.enter_context(socket.create_connection(address, timeout=10))
        wait_until(lambda: connections.closed == {Closed.CAP: 2})
        slow.finish_handshake()
        slow.send(LIVE)
        assert slow.read(100).startswith(b"HTTP/1.1 200")


def test_those_that_say_no_hello_are_closed_as_the_server_ends(tmp_path: Path):
    with contextlib.ExitStack() as silent:
        with fronted(tmp_path) as (connections, address):
            ours = [
                silent.enter_context(socket.create_connection(address, timeout=10))
                for _ in range(3)
            ]
            wait_until(lambda: connections.num_open == 3)
        assert connections.closed == {Closed.SHUTDOWN: 3}
        for one in ours:
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01", LIVE])
def test_what_is_no_hello_ends_in_time(tmp_path: Path, sent):
    with fronted(tmp_path, header_timeout_s=0.5) as (connections, address):
        with socket.create_connection(address, timeout=10) as one:
            one.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                while one.recv(100):
                    pass
        wait_until(lambda: connections.closed == {Closed.TLS: 1})
        assert connections.num_open == 0


def test_a_request_may_come_with_the_end_of_the_handshake(tmp_path: Path):
    """As clients send it that do not wait, many times: whether it comes so is chance."""
    with fronted(tmp_path) as (connections, address):
        for _ in range(50):
            with StepwiseTls(address) as one:
                one.say_hello()
                one.finish_handshake()
                one.send(LIVE)  # in one piece with the handshake's end
                assert one.read(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: connections.num_open == 0)
