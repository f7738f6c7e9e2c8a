"""One connection at a time: deadlines, drains, pipelines, answers. A real loop and real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from service.server.connections import Closed, Connections
from service.server.front import Front
from service.server.limits import ConnectionLimits
from tests.service.fakes import (
    MODEL,
    ByteTokenizer,
    FakeEngine,
    running_server,
    says,
    wait_until,
)
from tests.service.server.raw_http import RawConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

LIVE = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Fronted:
    """A server and its connections."""

    def __init__(self, engine: FakeEngine, connections: Connections, port: int) -> None:
        self.engine = engine
        self.connections = connections
        self._address = ("127.0.0.1", port)
        self._opened: list[RawConnection] = []

    def connect(self) -> RawConnection:
        self._opened.append(RawConnection(self._address))
        return self._opened[-1]

    def close(self) -> None:
        for connection in self._opened:
            connection.close()


@contextlib.contextmanager
def fronted(delay_s: float = 0, **limits: float) -> Iterator[Fronted]:
    tokenizer = ByteTokenizer()
    engine = FakeEngine(says(tokenizer, "word " * 5000), max_model_len=100_000, delay_s=delay_s)
    connections = Connections(ConnectionLimits(**limits))  # type: ignore[arg-type]
    with running_server(engine, tokenizer, front=Front(connections=connections)) as server:
        made = Fronted(engine, connections, server.port)
        try:
            yield made
        finally:
            made.close()


def completion(
    *headers: bytes, version: bytes = b"1.1", num_tokens: int = 3, stream: bool = False
) -> bytes:
    fields = {"model": MODEL, "prompt": "hi", "max_tokens": num_tokens, "stream": stream}
    body = json.dumps(fields).encode()
    own = [b"host: localhost", b"content-type: application/json", b"content-length: %d" % len(body)]
    lines = [b"POST /v1/completions HTTP/" + version, *own, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def body_of(connection: RawConnection) -> None:
    """Begin a body of 1 MB."""
    connection.send(
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: 1000000\r\n\r\n"
    )


@pytest.mark.alone
def test_a_body_that_keeps_coming_has_more_time_than_one_that_drips():
    with fronted(body_timeout_s=0.3, min_body_rate=1000) as server:
        steady, dripping = server.connect(), server.connect()
        body_of(steady)
        body_of(dripping)
        began = time.monotonic()
        while time.monotonic() - began < 0.9:
            steady.send(b" " * 1000)
            dripping.send(b" ")
            time.sleep(0.05)
        assert server.connections.refused == {"request_timeout": 1}
        answer = dripping.read()
        assert answer is not None
        assert answer.status == 408
        assert json.loads(answer.body)["error"]["code"] == "request_timeout"


def test_half_a_body_is_refused_by_the_id_that_its_request_has():
    with fronted(body_timeout_s=0.2) as server:
        connection = server.connect()
        connection.send(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-request-id: mine\r\n"
            b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
        )
        answer = connection.read()
        assert answer is not None
        assert answer.status == 408
        assert ("x-request-id", "mine") in answer.headers


@pytest.mark.alone
def test_a_long_answer_has_no_deadline():
    with fronted(
        0.02, idle_timeout_s=0.2, header_timeout_s=0.2, body_timeout_s=0.2, first_byte_timeout_s=0.2
    ) as server:
        connection = server.connect()
        connection.send(completion(num_tokens=40))
        answer = connection.read()
        assert answer is not None
        assert answer.status == 200
        assert connection.is_at_end()  # once it is idle
        assert server.connections.closed == {Closed.IDLE: 1}


def test_half_a_request_does_not_hold_a_drain():
    with fronted() as server:
        half_body, half_head, idle = (server.connect() for _ in range(3))
        body_of(half_body)
        half_head.send(LIVE[:-4])
        wait_until(lambda: server.connections.num_incomplete == 2)
        # As the server does it: from its loop, which alone may touch connections.
        loop = next(iter(server.connections._incomplete)).loop  # type: ignore[attr-defined]
        loop.call_soon_threadsafe(server.connections.close_incomplete)
        for connection in (half_body, half_head):
            answer = connection.read()
            assert answer is not None
            assert (answer.status, answer.header("retry-after")) == (503, "5")
            assert connection.is_at_end()
        later = server.connect()
        body_of(later)
        answer = later.read()
        assert answer is not None
        assert answer.status == 503
        idle.send(LIVE)
        answer = idle.read()
        assert answer is not None
        assert answer.status == 200


def test_refused_client_that_is_still_sending_gets_its_answer():
    """To close under what it sends would be a reset, which takes the answer from it."""
    with fronted() as server:
        connection = server.connect()
        connection.send(b"GET / HTTP/1.1\r\nhost: localhost\r\na: " + b"b" * 3_000_000)
        answer = connection.read()
        assert answer is not None
        assert answer.status == 431
        assert connection.is_at_end()


def test_client_that_leaves_is_noticed_though_another_request_waits_behind():
    with fronted(0.01) as server:
        connection = server.connect()
        connection.send(completion(num_tokens=5000, stream=True) + completion(num_tokens=5000))
        wait_until(lambda: len(server.engine.running) == 1)
        connection.close()
        wait_until(lambda: not server.engine.running, limit_s=2)


def test_requests_at_once_are_answered_in_their_order():
    with fronted(0.001) as server:
        connection = server.connect()
        connection.send(completion(num_tokens=30) + LIVE + completion(num_tokens=2) + LIVE)
        found = [connection.read() for _ in range(4)]
        bodies = [json.loads(answer.body) for answer in found if answer is not None]
        assert [len(body.get("choices", [])) for body in bodies] == [1, 0, 1, 0]
        assert bodies[0]["usage"]["completion_tokens"] == 30


def test_a_bad_request_behind_a_stream_does_not_cut_it():
    with fronted(0.001) as server:
        connection = server.connect()
        connection.send(completion(num_tokens=50, stream=True))
        connection.send(b"garbage\r\n\r\n")
        answer = connection.read()
        assert answer is not None
        assert answer.body.endswith(b"data: [DONE]\n\n")
        refused = connection.read()
        assert refused is not None
        assert refused.status == 400
        assert connection.is_at_end()


@pytest.mark.parametrize("keep", [b"keep-alive", b"close"])
def test_http_1_0_gets_a_stream_without_chunks_that_ends_with_the_connection(keep):
    with fronted() as server:
        connection = server.connect()
        connection.send(completion(b"connection: " + keep, version=b"1.0", stream=True))
        answer = connection.read()
        assert answer is not None
        assert answer.header("transfer-encoding") is None
        assert answer.header("content-length") is None
        assert answer.header("connection") == "close"
        assert answer.body.startswith(b"data: {")
        assert answer.body.endswith(b"data: [DONE]\n\n")


def test_http_1_0_may_keep_its_connection_where_lengths_are_known():
    with fronted() as server:
        connection = server.connect()
        for _ in range(3):
            connection.send(completion(b"connection: keep-alive", version=b"1.0"))
            answer = connection.read()
            assert answer is not None
            assert (answer.status, answer.header("connection")) == (200, "keep-alive")
        connection.send(completion(version=b"1.0"))
        answer = connection.read()
        assert answer is not None
        assert answer.header("connection") == "close"
        assert connection.is_at_end()


def test_body_is_asked_for_where_the_client_waits_for_that():
    with fronted() as server:
        connection = server.connect()
        head, _, body = completion(b"expect: 100-continue").partition(b"\r\n\r\n")
        connection.send(head + b"\r\n\r\n")
        interim = connection.read()
        assert interim is not None
        assert interim.status == 100
        connection.send(body)
        answer = connection.read()
        assert answer is not None
        assert answer.status == 200


def test_connection_that_offers_http_2_is_answered_in_1_1_with_its_body():
    """Java's client does so by default, without TLS."""
    with fronted() as server:
        connection = server.connect()
        offer = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMA")
        for _ in range(2):
            connection.send(completion(*offer))
            answer = connection.read()
            assert answer is not None
            assert answer.status == 200
            assert json.loads(answer.body)["usage"]["completion_tokens"] == 3


def test_oldest_idle_connection_makes_room_and_a_busy_one_does_not():
    with fronted(0.01, max_connections=3) as server:
        busy = server.connect()
        busy.send(completion(num_tokens=100))
        wait_until(lambda: bool(server.engine.running))
        first, second = server.connect(), server.connect()
        wait_until(lambda: server.connections.num_open == 3)
        third = server.connect()
        assert first.is_at_end()
        for connection in (second, third):
            connection.send(LIVE)
            assert connection.read() is not None
        answer = busy.read()
        assert answer is not None
        assert answer.status == 200
        assert server.connections.closed == {Closed.CAP: 1}


def test_new_connection_is_closed_where_all_are_busy():
    with fronted(0.01, max_connections=2) as server:
        for _ in range(2):
            server.connect().send(completion(num_tokens=200))
        wait_until(lambda: len(server.engine.running) == 2)
        assert server.connect().is_at_end()
        assert server.connections.closed == {Closed.NO_ROOM: 1}


def leave_unread(server: Fronted, sent: bytes, num_bytes: int = 4096) -> RawConnection:
    """Ask for a lot, and read none of it."""
    connection = server.connect()
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, num_bytes)
    connection.send(sent)
    return connection


def test_those_that_read_no_answer_make_room_after_the_idle_ones():
    with fronted(max_connections=4) as server:
        unread = [leave_unread(server, DOCUMENT * 60) for _ in range(3)]
        wait_until(lambda: len(server.connections._stalled) == 3)
        idle = server.connect()
        wait_until(lambda: server.connections.num_open == 4)
        for _ in range(2):
            newcomer = server.connect()
            newcomer.send(LIVE)
            answer = newcomer.read()
            assert answer is not None
            assert answer.status == 200
            newcomer.send(completion(num_tokens=5000, stream=True))  # no longer idle
        assert idle.is_at_end()
        assert len(unread) == 3
        wait_until(lambda: len(server.connections._stalled) < 3)
        assert server.connections.closed == {Closed.CAP: 2}


@pytest.mark.parametrize("last", [b"", b"connection: close\r\n"])
def test_those_that_read_no_answer_are_closed_in_time(last):
    with fronted(stall_limit_s=0.3) as server:
        leave_unread(server, DOCUMENT * 59 + DOCUMENT[:-2] + last + b"\r\n")
        wait_until(lambda: server.connections.closed == {Closed.STALLED: 1}, limit_s=5)


def test_a_slow_reader_gets_all_of_its_answers():
    with fronted(stall_limit_s=0.5) as server:
        connection = leave_unread(server, DOCUMENT * 60, num_bytes=256 * 1024)
        wait_until(lambda: bool(server.connections._stalled))
        for _ in range(60):
            time.sleep(0.03)
            answer = connection.read()
            assert answer is not None
            assert answer.is_whole
        assert server.connections.closed == {}


def test_requests_that_wait_are_few_bytes():
    large = completion(b"x-large: " + b"a" * 60_000)
    with fronted(0.01) as server:
        connection = server.connect()
        connection.send(completion(num_tokens=30), *[large] * 6)
        found = []
        while (answer := connection.read()) is not None:
            found.append(answer.status)
        assert found == [200, 200, 200, 200, 200, 400]
        assert server.connections.refused == {"invalid_http": 1}


def test_nothing_is_left_of_many_connections():
    with fronted() as server:
        for sent in (LIVE, b"bad\r\n\r\n", completion(), LIVE[:9], b"") * 20:
            connection = server.connect()
            connection.send(sent)
            if sent.endswith(b"\r\n\r\n"):
                assert connection.read() is not None
            connection.close()
        # The last ones may not have been accepted yet when their other end is gone.
        wait_until(lambda: sum(server.connections.closed.values()) == 100)
        assert server.connections.num_open == 0
        assert server.connections.num_incomplete == 0
