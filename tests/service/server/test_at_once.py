"""What an application answers by a request's head goes out at once, and the connection goes on."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest
import uvicorn

from service.server.front import Front
from tests.service.fakes import wait_until
from tests.service.server.raw_http import RawConnection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from starlette.types import Message, Receive, Scope, Send


class Refusing:
    """An application that answers what lies under /full by its head, and runs the rest."""

    def __init__(self) -> None:
        self.num_run = 0

    def answer_at_once(self, scope: Scope) -> Sequence[Message] | None:
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
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def app() -> Refusing:
    return Refusing()


@pytest.fixture
def connection(app) -> Iterator[RawConnection]:
    server = uvicorn.Server(Front().config(app))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    with contextlib.closing(RawConnection(listener.getsockname())) as made:
        yield made
    server.should_exit = server.force_exit = True
    thread.join(10)


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
