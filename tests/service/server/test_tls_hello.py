"""Connections that speak TLS, and those that only might: real sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
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
from tests.service.server.certificates import make_certificate, needs_openssl

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
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(address, timeout=10)
    return context.wrap_socket(plain)


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
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing)
            with socket.create_connection(address, timeout=10) as plain:
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                plain.sendall(outgoing.read())
                while True:
                    incoming.write(plain.recv(65536))
                    with contextlib.suppress(ssl.SSLWantReadError):
                        tls.do_handshake()
                        break
                tls.write(LIVE)
                plain.sendall(outgoing.read())  # both in one piece
                found = b""
                while not found:
                    incoming.write(plain.recv(65536))
                    with contextlib.suppress(ssl.SSLWantReadError):
                        found = tls.read(100)
                assert found.startswith(b"HTTP/1.1 200")
        wait_until(lambda: connections.num_open == 0)
