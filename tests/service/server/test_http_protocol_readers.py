"""Connections of those who are still reading, or have gone: nothing cut, nothing kept.

`HttpProtocol` on a real loop and real sockets, with an application of a few lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from service.server import http_protocol, http_server
from service.server.connections import Closed, Connections
from service.server.front import Front
from service.server.http_protocol import HttpProtocol
from service.server.http_server import HttpServer
from service.server.limits import ConnectionLimits
from tests.service.server.tcp_pair import make_tcp_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.types import Receive, Scope, Send

pytestmark = pytest.mark.alone

LARGE = b"x" * 4_000_000
GET = b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n"
PIECE = 256 * 1024  # bytes that a slow reader takes
PAUSE_S = 0.02  # between two of them: the whole answer takes 0.3 s


class Held:
    """Something that an application keeps with a request."""


class Answering:
    """Answers with as much as the path says; keeps something in each scope."""

    def __init__(self) -> None:
        self.held: list[weakref.ref[Held]] = []
        self.errors: list[Exception] = []
        self.received: list[str] = []
        self.may_end = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["held"] = held = Held()
        self.held.append(weakref.ref(held))
        body = LARGE if scope["path"] == "/large" else b"ok"
        headers = [(b"content-length", str(len(body)).encode())]
        try:
            while scope["path"] != "/early":
                message = await receive()
                self.received.append(message["type"])
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    break
            if scope["path"] == "/stream":
                await self.stream(send)
                return
            if scope["path"] == "/held":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await self.may_end.wait()
                await send({"type": "http.response.body", "body": b"all"})
                return
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        except Exception as error:
            self.errors.append(error)
            raise

    async def stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(300):
            piece = {"type": "http.response.body", "body": LARGE[:PIECE], "more_body": True}
            await send(piece)
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})


class Bench:
    """A server without a port; connections are pairs of sockets."""

    def __init__(self, **limits: Any) -> None:
        self.app = Answering()
        self.connections = Connections(ConnectionLimits(**limits))
        self.server = HttpServer(self.app, Front(connections=self.connections))
        self.server.config.load()

    async def close(self) -> None:
        """End whatever is left."""
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()
        await until(lambda: not self.connections.num_open)

    async def connect(self, *, is_tcp: bool = False) -> tuple[socket.socket, HttpProtocol]:
        ours, theirs = make_tcp_pair() if is_tcp else socket.socketpair()
        ours.setblocking(False)
        make = partial(
            HttpProtocol,
            self.server.config,
            self.server.server_state,
            app_state={},
            connections=self.connections,
        )
        _, protocol = await asyncio.get_running_loop().connect_accepted_socket(make, theirs)
        return ours, protocol


async def send(connection: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)


async def read_slowly(connection: socket.socket, *, limit_s: float = 10) -> bytes:
    """Read to the end, or until an answer of `LARGE` has come whole."""
    came = b""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        await asyncio.sleep(PAUSE_S)
        try:
            piece = connection.recv(PIECE)
        except BlockingIOError:
            continue
        came += piece
        if not piece or came.endswith(LARGE):
            break
    return came


async def read_some(connection: socket.socket) -> bytes:
    """Read what comes soon."""
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, PIECE), 2)
    return b""


async def until(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def run(test: Callable[[Bench], Coroutine[Any, Any, None]], **limits: Any) -> None:
    async def to_its_end() -> None:
        bench = Bench(**limits)
        try:
            await asyncio.wait_for(test(bench), 30)
        finally:  # uvloop waits at its own end for what is still to be sent
            await bench.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(to_its_end())


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HT"], ids=str
)
def test_a_connection_that_is_closed_is_let_go_of_without_the_collector(sent: bytes):
    """What lives when a variant is loaded or unloaded is never looked at by the collector again."""

    async def test(bench: Bench) -> None:
        connection, protocol = await bench.connect()
        seen = weakref.ref(protocol)
        del protocol
        await send(connection, sent)
        if sent.endswith(b"\r\n\r\n"):
            assert await read_some(connection)
        await asyncio.sleep(0.05)
        gc.collect()
        gc.disable()
        try:
            connection.close()
            await until(lambda: not bench.connections.num_open)
            await until(lambda: seen() is None)
        finally:
            gc.enable()

    run(test)


def test_an_idle_connection_keeps_nothing_of_what_it_was_asked():
    async def test(bench: Bench) -> None:
        connection, _protocol = await bench.connect()
        whole = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n"
        for pieces in ([whole + b"{}"], [whole, b"{}"], [GET.replace(b"large", b"") * 2]):
            for piece in pieces:
                await send(connection, piece)
                await asyncio.sleep(0.02)
            assert await read_some(connection)
        await until(lambda: len(bench.app.held) == 4)
        gc.collect()
        assert [held for held in bench.app.held if held() is not None] == []
        connection.close()

    run(test)


def test_an_answer_on_its_way_makes_no_room_for_new_connections():
    async def test(bench: Bench) -> None:
        reader, _ = await bench.connect()
        await send(reader, GET)
        reading = asyncio.create_task(read_slowly(reader))
        await until(lambda: bench.app.received)
        silent = [await bench.connect() for _ in range(2)]
        came = await reading
        assert came.endswith(LARGE)
        assert bench.connections.closed[Closed.CAP] == 1
        for connection, _ in [*silent, (reader, None)]:
            connection.close()

    run(test, max_connections=2)


HELD = GET.replace(b"large", b"held")
HALF = b"POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{"


def test_an_answer_makes_no_room_while_half_a_request_comes_behind_it():
    async def test(bench: Bench) -> None:
        reader, _ = await bench.connect()
        await send(reader, HELD + HALF)
        assert (await read_some(reader)).startswith(b"HTTP/1.1 200")
        assert bench.connections.num_incomplete == 1
        silent = [await bench.connect() for _ in range(2)]
        await until(lambda: bench.connections.closed[Closed.CAP] == 1)
        bench.app.may_end.set()
        assert b"all" in await read_some(reader)
        # But what is left then is half a request, which keeps no place.
        silent += [await bench.connect() for _ in range(2)]
        await until(lambda: bench.connections.closed[Closed.CAP] == 3)
        assert await read_some(reader) == b""
        for connection, _ in [*silent, (reader, None)]:
            connection.close()

    run(test, max_connections=2)


def test_a_bad_request_behind_an_answer_does_not_cut_it_as_the_server_ends():
    async def test(bench: Bench) -> None:
        reader, protocol = await bench.connect()
        chunked = b"POST /2 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
        await send(reader, HELD + chunked)
        came = await read_some(reader)
        protocol.shutdown()
        await send(reader, b"zz\r\n")
        await until(lambda: bench.connections.refused["invalid_http"] == 1)
        bench.app.may_end.set()
        while not came.endswith(b"0\r\n\r\n"):
            piece = await read_some(reader)
            assert piece
            came += piece
        assert b"all" in came
        reader.close()

    run(test)


@pytest.mark.parametrize("is_answered", [False, True])
def test_who_is_still_sending_as_the_server_ends_gets_the_answer(is_answered: bool):
    """To close under what it sends would be a reset, which takes the answer from it."""

    async def test(bench: Bench) -> None:
        connection, protocol = await bench.connect(is_tcp=True)
        large = HALF.replace(b"length: 9", b"length: 999999")
        await send(connection, HELD + large if is_answered else large)
        await until(lambda: bench.connections.num_incomplete == 1)
        if not is_answered:
            bench.connections.close_incomplete()
        protocol.shutdown()
        await send(connection, b"x" * 1000)
        bench.app.may_end.set()
        for _ in range(5):
            await asyncio.sleep(0.02)
            await send(connection, b"x" * 1000)
        came = b""
        while piece := await read_some(connection):
            came += piece
        assert came.endswith(b"0\r\n\r\n" if is_answered else b"}}")
        connection.close()

    run(test)


@pytest.mark.parametrize("ending", ["slow", "draining", "malformed"])
def test_what_has_been_answered_is_not_refused_as_well(ending: str):
    async def test(bench: Bench) -> None:
        connection, _ = await bench.connect()
        await send(connection, HELD.replace(b"GET /held", b"POST /early")[:-2])
        await send(connection, b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        assert (await read_some(connection)).endswith(b"ok")
        assert bench.connections.num_incomplete == 1
        if ending == "draining":
            assert bench.connections.close_incomplete() == 1
        elif ending == "malformed":
            await send(connection, b"zz\r\n")
        assert await read_some(connection) == b""
        assert not bench.connections.refused
        connection.close()
        await until(lambda: not bench.connections.num_open)
        assert bench.connections.closed == {Closed.ANSWERED: 1}

    run(test, body_timeout_s=0.2 if ending == "slow" else 30)


def test_a_body_that_came_fast_buys_no_long_silence():
    async def test(bench: Bench) -> None:
        connection, _ = await bench.connect()
        head = b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n"
        await send(connection, head + LARGE)  # at the slowest it takes four minutes
        await until(lambda: not bench.connections.num_incomplete)
        connection.close()

    run(test, body_timeout_s=0.2)


@pytest.mark.parametrize("is_draining", [False, True])
def test_a_refusal_does_not_cut_the_answer_before_it(
    monkeypatch: pytest.MonkeyPatch, is_draining: bool
):
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.05)

    async def test(bench: Bench) -> None:
        reader, _ = await bench.connect()
        await send(reader, GET)
        reading = asyncio.create_task(read_slowly(reader))
        await until(lambda: bench.app.received)
        await send(reader, b"GET /2 HT" if is_draining else b"GARBAGE\r\n\r\n")
        await asyncio.sleep(0.02)
        if is_draining:
            assert bench.connections.close_incomplete() == 1
        assert LARGE in await reading
        reader.close()

    run(test)


def test_who_reads_nothing_of_a_refusal_is_dropped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.05)

    async def test(bench: Bench) -> None:
        idle, stalled = (await bench.connect())[0], (await bench.connect())[0]
        await send(idle, b"GARBAGE\r\n\r\n")
        await send(stalled, GET + b"GARBAGE\r\n\r\n")
        await until(lambda: not bench.connections.num_open)
        idle.close()
        stalled.close()

    run(test, stall_limit_s=0.1)


def test_the_server_ends_when_those_who_read_have_read_and_drops_the_others(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(http_server, "CLOSING_LIMIT_S", 0.1)

    async def test(bench: Bench) -> None:
        reader, stalled = (await bench.connect())[0], (await bench.connect())[0]
        await send(reader, GET)
        await send(stalled, GET)
        await until(lambda: len(bench.app.received) == 2)
        reading = asyncio.create_task(read_slowly(reader))
        bench.server.servers = []
        bench.server.end(readers_limit_s=20)
        began = time.monotonic()
        await bench.server.shutdown()
        assert time.monotonic() - began < 10
        assert (await reading).endswith(LARGE)
        assert not bench.connections.num_open
        reader.close()
        stalled.close()

    run(test)


def test_the_server_ends_in_time_though_somebody_reads_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_server, "CLOSING_LIMIT_S", 0.05)

    async def test(bench: Bench) -> None:
        reader, _ = await bench.connect()
        await send(reader, GET)
        reading = asyncio.create_task(read_slowly(reader))
        await until(lambda: bench.app.received)
        bench.server.servers = []
        bench.server.end(readers_limit_s=0.1)
        await bench.server.shutdown()
        assert len(await reading) < len(LARGE)
        reader.close()

    run(test)


def test_nothing_is_sent_behind_a_refusal_nor_asked_for():
    async def test(bench: Bench) -> None:
        connection, _ = await bench.connect()
        head = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n"
        await send(connection, head + b"transfer-encoding: chunked\r\n\r\nzz\r\n")
        assert (await read_some(connection)).startswith(b"HTTP/1.1 400 ")
        await until(lambda: bench.app.received)
        assert bench.app.received == ["http.disconnect"]
        assert bench.app.errors == []
        connection.close()

    run(test)


def test_a_request_that_waits_for_another_s_answer_is_not_told_to_go_on():
    """Until it was, no deadline would hold for its body."""

    async def test(bench: Bench) -> None:
        connection, _ = await bench.connect()
        asked = b"POST /2 HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n"
        await send(connection, GET.replace(b"large", b"stream") + asked)
        await until(lambda: not bench.connections.num_open)
        connection.close()

    run(test, body_timeout_s=0.2, stall_limit_s=0.2)
