"""What an application answers by a request's head goes out at once, and the connection goes on."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
import uvloop

from service.server.front import Front
from service.server.http_server import HttpServer
from service.server.tls import make_tls
from tests.service.server.certificates import make_certificate, needs_openssl, trust_any
from tests.service.server.raw_http import RawConnection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from starlette.types import Message, Receive, Scope, Send

LARGE = 3_000_000  # bytes, more than a socket and a transport hold


class Refusing:
    """An application that answers what lies under /full by its head, and runs the rest."""

    def __init__(self) -> None:
        self.num_run = 0

    def answer_at_once(self, scope: Scope) -> Sequence[Message] | None:
        if scope["path"] == "/broken":
            raise ValueError("not known at the head")
        if not scope["path"].startswith("/full"):
            return None
        body = scope["path"].encode()
        headers = [(b"content-length", b"%d" % len(body))]
        return (
            {"type": "http.response.start", "status": 429, "headers": headers},
            {"type": "http.response.body", "body": body},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_run += 1
        while (await receive()).get("more_body"):
            pass
        body = b"x" * LARGE if scope["path"] == "/large" else b"ok"
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def app() -> Refusing:
    return Refusing()


@contextlib.contextmanager
def serving(app: Refusing, front: Front) -> Iterator[tuple[str, int]]:
    """Serve as the server does: on uvloop."""
    loop = uvloop.new_event_loop()
    server = HttpServer(app, front)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(
        target=loop.run_until_complete, args=[server.serve(sockets=[listener])]
    )
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        loop.call_soon_threadsafe(server.end)
        thread.join(10)
        loop.close()


@pytest.fixture
def connection(app) -> Iterator[RawConnection]:
    with (
        serving(app, Front()) as address,
        contextlib.closing(RawConnection(address)) as made,
    ):
        yield made


def post(path: bytes, body: bytes = b"", *headers: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    own = (b"host: localhost", b"content-length: %d" % size)
    return b"\r\n".join((b"POST " + path + b" HTTP/1.1", *own, *headers)) + b"\r\n\r\n" + body


def test_it_is_not_run_and_the_connection_stays(connection, app):
    for _ in range(3):
        connection.send(post(b"/full", b"x" * 100))
        assert connection.read().status == 429
    connection.send(post(b"/other", b"x"))
    assert connection.read().status == 200
    assert app.num_run == 1


def test_answers_keep_their_order(connection):
    paths = [b"/full/1", b"/other", b"/full/2", b"/full/3", b"/other", b"/full/4"]
    connection.send(b"".join(post(path, b"abc") for path in paths))
    bodies = [connection.read().body for _ in paths]
    assert bodies == [b"/full/1", b"ok", b"/full/2", b"/full/3", b"ok", b"/full/4"]


def test_as_many_as_may_wait_are_answered_without_one_within_the_other(connection):
    connection.send(post(b"/other", b"abc") + post(b"/full", b"abc") * 60)
    answers = [connection.read().status for _ in range(61)]
    assert answers == [200] + [429] * 60


def test_a_body_that_comes_later_is_skipped(connection):
    connection.send(post(b"/full", b"x" * 10, length=200_000))
    assert connection.read().status == 429
    connection.send(b"x" * 199_990, post(b"/other"))
    assert connection.read().status == 200


def test_whoever_asks_for_it_is_left(connection):
    connection.send(post(b"/full", b"abc", b"connection: close"))
    answer = connection.read()
    assert answer.status == 429
    assert answer.header("connection") == "close"
    assert connection.is_at_end()


def test_a_head_alone_is_answered_without_a_body(connection):
    connection.send(b"HEAD /full HTTP/1.1\r\nhost: localhost\r\n\r\n")
    answer = connection.read("HEAD")
    assert (answer.status, answer.header("content-length")) == (429, "5")
    connection.send(post(b"/full"))
    assert connection.read().body == b"/full"


def test_what_is_wrong_behind_it_is_refused_after_it(connection):
    connection.send(post(b"/full", b"abc") + b"nonsense\r\n\r\n")
    assert connection.read().status == 429
    assert connection.read().status == 400
    assert connection.is_at_end()


@needs_openssl
def test_over_https_too(app, tmp_path):
    front = Front(tls=make_tls(*make_certificate(tmp_path)))
    with serving(app, front) as address, socket.create_connection(address, timeout=15) as plain:
        secret = trust_any().wrap_socket(plain)
        for _ in range(3):
            secret.sendall(post(b"/full", b"abc"))
            received = b""
            while not received.endswith(b"/full"):
                received += secret.recv(1000)
            assert received.startswith(b"HTTP/1.1 429")
        secret.close()


def test_an_answer_before_it_that_is_read_slowly_comes_whole(connection):
    connection.send(post(b"/large"))
    for _ in range(5):  # while what is unsent grows less
        connection.send(post(b"/full", b"abc"))
        time.sleep(0.02)
    large = connection.read()
    assert (large.status, len(large.body), large.is_whole) == (200, LARGE, True)
    assert [connection.read().status for _ in range(5)] == [429] * 5


def test_http_1_0_gets_it_and_the_end(connection):
    connection.send(b"POST /full HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc")
    assert connection.read().status == 429
    assert connection.is_at_end()


def test_whoever_waits_to_be_asked_for_its_body_need_not_send_it(connection):
    connection.send(post(b"/full", b"", b"expect: 100-continue", length=1_000_000))
    answer = connection.read()
    assert (answer.status, answer.header("connection")) == (429, "close")


def test_an_application_that_fails_at_the_head_is_run(connection, app):
    connection.send(post(b"/broken", b"abc"))
    assert connection.read().body == b"ok"
    assert app.num_run == 1
