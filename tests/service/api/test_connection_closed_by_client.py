"""Clients that leave, or stop reading: what they asked for ends with them."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from service.api import event_stream
from service.api.event_stream import StreamTiming, _Writer
from service.api.frames import KEEP_ALIVE
from service.errors import StalledReaderError
from service.observation.observation import Observation
from service.observation.request_log import RequestLog
from service.server.connections import Connections
from service.server.front import Front
from service.server.limits import ConnectionLimits
from tests.service.fakes import MODEL, FakeEngine, RunningServer, running_server, says, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

pytestmark = pytest.mark.alone

STEP_S = 0.01
LIMIT_S = 0.25


@pytest.fixture
def engine(tiny_tokenizer: PreTrainedTokenizerFast) -> FakeEngine:
    return FakeEngine(says(tiny_tokenizer, "word " * 5000), max_model_len=100_000, delay_s=STEP_S)


@pytest.fixture
def server(engine: FakeEngine, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[RunningServer]:
    with running_server(engine, tiny_tokenizer) as running:
        yield running


def connect(server: RunningServer, *, stream: bool, n: int = 1) -> socket.socket:
    """Send a request for a very long answer."""
    body = json.dumps(
        {"model": MODEL, "prompt": "hi", "max_tokens": 50_000, "stream": stream, "n": n}
    )
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body.encode())
    )
    return connection


def reset(connection: socket.socket) -> None:
    """Close with RST, as a process that is killed may."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_stops_its_sequences(server, engine, stream, n, leave):
    connection = connect(server, stream=stream, n=n)
    wait_until(lambda: len(engine.running) == n and engine.num_tokens > 3)
    leave(connection)
    assert wait_until(lambda: not engine.running) < LIMIT_S
    assert engine.num_aborted == n
    wait_until(lambda: server.lifecycle.num_open_requests == 0)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_nothing_is_left_after_many_clients_left(server, engine, stream):
    for i in range(200):
        connection = connect(server, stream=stream)
        wait_until(lambda: bool(engine.running))
        (reset if i % 2 else socket.socket.close)(connection)
        assert wait_until(lambda: not engine.running) < LIMIT_S
    assert engine.num_aborted == 200
    wait_until(lambda: server.lifecycle.num_open_requests == 0)


def test_client_that_leaves_does_not_disturb_another(server, engine):
    leaving = connect(server, stream=True)
    staying = connect(server, stream=True)
    wait_until(lambda: len(engine.running) == 2)
    leaving.close()
    wait_until(lambda: len(engine.running) == 1)
    before = engine.num_tokens
    wait_until(lambda: engine.num_tokens > before + 10)
    staying.close()


def test_silent_stream_gets_comments(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "ab"), delay_s=0.35)
    body = {"model": MODEL, "prompt": "hi", "stream": True}
    with running_server(engine, tiny_tokenizer, keep_alive_interval_s=0.1) as server:
        text = httpx.post(f"{server.url}/v1/completions", json=body).text
    first, *_ = text.partition("data:")
    # Lines of their own without an empty one, which would make them events without data.
    assert first in (": keep-alive\n" * 2, ": keep-alive\n" * 3)
    assert text.endswith("data: [DONE]\n\n")


def test_official_client_does_not_mind_comments(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "ab"), delay_s=0.12)
    with running_server(engine, tiny_tokenizer, keep_alive_interval_s=0.05) as server:
        stream = server.client().completions.create(model=MODEL, prompt="hi", stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == "ab"


def test_busy_stream_gets_no_comments(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "word " * 10), delay_s=0.02)
    body = {"model": MODEL, "prompt": "hi", "stream": True}
    with running_server(engine, tiny_tokenizer, keep_alive_interval_s=0.5) as server:
        assert "keep-alive" not in httpx.post(f"{server.url}/v1/completions", json=body).text


@pytest.mark.parametrize("limits_s", [(0.3, 30), (30, 0.3), (0.3, 0.3)])
def test_stream_that_is_not_read_is_cut_off(tiny_tokenizer, limits_s):
    """The sockets' buffers fill first; then nothing moves, and the sequence must not live on.

    limits_s: the stream's own, and its connection's.
    """
    lines: list[str] = []
    observation = Observation(RequestLog(lines.append, as_json=True, slow_s=100))
    front = Front(connections=Connections(ConnectionLimits(stall_limit_s=limits_s[1])))
    engine = FakeEngine(says(tiny_tokenizer, "word " * 200_000), max_model_len=10_000_000)
    with running_server(
        engine, tiny_tokenizer, stall_limit_s=limits_s[0], observation=observation, front=front
    ) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        body = json.dumps(
            {"model": MODEL, "prompt": "hi", "max_tokens": 1_000_000, "stream": True, "n": 2}
        )
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body.encode())
        )
        wait_until(lambda: len(engine.running) == 2)
        wait_until(lambda: not engine.running, limit_s=20)
        wait_until(lambda: bool(lines))
        connection.close()
    assert [json.loads(line)["outcome"] for line in lines] == ["stalled_reader"]
    assert engine.num_aborted == 2
    assert engine.num_tokens < 200_000


def test_slow_reader_gets_everything(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "word " * 300), max_model_len=100_000)
    body = {"model": MODEL, "prompt": "hi", "max_tokens": 50_000, "stream": True}
    with running_server(engine, tiny_tokenizer, stall_limit_s=5) as server:
        text = ""
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            for piece in response.iter_text():
                text += piece
                time.sleep(0.001)
    assert text.count('"text":"') > 300
    assert text.endswith("data: [DONE]\n\n")


def test_writer_that_waits_for_its_reader_keeps_nobody_busy():
    async def test() -> None:
        async def send(message: object) -> None:
            await asyncio.sleep(60)

        timing = StreamTiming(keep_alive_interval_s=0.01, stall_limit_s=0.4)
        writer = _Writer(send, send, timing, KEEP_ALIVE)
        writing = asyncio.create_task(writer.write(b"data"))
        num_sleeps, sleep = 0, asyncio.sleep

        async def counted(delay_s: float) -> None:
            nonlocal num_sleeps
            num_sleeps += 1
            await sleep(delay_s)

        await sleep(0.05)
        event_stream.asyncio.sleep = counted
        try:
            with pytest.raises(StalledReaderError):
                await writer.watch()
        finally:
            event_stream.asyncio.sleep = sleep
        assert num_sleeps <= 2  # once, or again where a clock is coarse
        writing.cancel()

    asyncio.run(test())
