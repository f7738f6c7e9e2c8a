"""uvicorn's server without its clock: at rest while nothing happens, no force at its end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import TYPE_CHECKING

import pytest

from service.server import http_server
from service.server.front import Front
from service.server.http_server import HttpServer
from tests.replaced import replace_within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def send_piece(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(app: object) -> AsyncIterator[tuple[HttpServer, int, asyncio.Task[None]]]:
    server = HttpServer(app, Front())
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0)
    try:
        yield server, listener.getsockname()[1], task
    finally:
        server.end()
        await task


def run(test: object) -> None:
    asyncio.run(asyncio.wait_for(test, 10))


def test_server_at_rest_has_nothing_that_wakes_it():
    async def test() -> None:
        loop = asyncio.get_running_loop()
        before = set(loop._scheduled)
        async with serving(answer):
            for _ in range(5):
                await asyncio.sleep(0)
            assert set(loop._scheduled) == before

    run(test())


def test_answers_carry_the_date_of_now(monkeypatch):
    async def ask(port: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        head = (await reader.read()).decode()
        writer.close()
        (date,) = re.findall(r"(?m)^date: (.*)\r$", head)
        return date

    async def test() -> None:
        async with serving(answer) as (_, port, _):
            replace_within(monkeypatch, http_server, "time", time=lambda: 784_111_777.9)
            assert await ask(port) == "Sun, 06 Nov 1994 08:49:37 GMT"
            replace_within(monkeypatch, http_server, "time", time=lambda: 784_111_778.1)
            assert await ask(port) == "Sun, 06 Nov 1994 08:49:38 GMT"

    run(test())


def test_connections_at_rest_are_closed_at_once(monkeypatch):
    monkeypatch.setattr(http_server, "CLOSING_LIMIT_S", 60)

    async def test() -> None:
        async with serving(answer) as (server, port, task):
            idle_reader, idle = await asyncio.open_connection("127.0.0.1", port)
            idle.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"204" in await idle_reader.readuntil(b"\r\n\r\n")
            half_reader, half = await asyncio.open_connection("127.0.0.1", port)
            half.write(b"GET / HTTP/1.1\r\nhost: loc")
            await half.drain()
            new_reader, new = await asyncio.open_connection("127.0.0.1", port)
            while len(server.server_state.connections) < 3:
                await asyncio.sleep(0)
            server.end()
            await task
            for reader, writer in ((idle_reader, idle), (half_reader, half), (new_reader, new)):
                assert await reader.read() == b""
                writer.close()

    run(test())


def test_reader_that_stalls_is_dropped_and_its_task_ends_by_itself(monkeypatch, caplog):
    monkeypatch.setattr(http_server, "CLOSING_LIMIT_S", 0.05)
    ends: list[BaseException | None] = []

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while (await receive())["type"] != "http.disconnect":
                for _ in range(400):
                    await send_piece(send)
        except BaseException as error:
            ends.append(error)
            raise
        ends.append(None)

    async def test() -> None:
        async with serving(stream) as (server, port, task):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            while not any(c.flow.write_paused for c in server.server_state.connections):
                await asyncio.sleep(0)
            server.end()
            await task
            writer.close()

    run(test())
    assert ends == [None]
    assert "Traceback" not in caplog.text
    assert "Exception" not in caplog.text


@pytest.mark.parametrize("num_connections", [1, 3])
def test_answer_under_way_is_waited_for(num_connections):
    async def test() -> None:
        may_end = asyncio.Event()

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            await may_end.wait()
            await answer(scope, receive, send)

        async with serving(late) as (server, port, task):
            opened = [
                await asyncio.open_connection("127.0.0.1", port) for _ in range(num_connections)
            ]
            for _, writer in opened:
                writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            while len(server.server_state.tasks) < num_connections:
                await asyncio.sleep(0)
            server.end()
            await asyncio.sleep(0)
            assert not task.done()
            may_end.set()
            for reader, writer in opened:
                assert b"204" in await reader.read()
                writer.close()
            await task

    run(test())
