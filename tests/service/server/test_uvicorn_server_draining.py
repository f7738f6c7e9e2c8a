"""What is open when the server is to end, and how soon it ends all the same. Real processes."""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from tests.service import processes
from tests.service.fakes import MODEL, wait_until
from tests.service.server.test_uvicorn_server import read_all, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service.server.test_uvicorn_server import Process

pytestmark = [pytest.mark.slow, pytest.mark.alone]

NUM_STREAMS = 32
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def connect(process: Process, sent: bytes = b"") -> socket.socket:
    address = httpx.URL(process.url)
    connection = socket.create_connection((address.host, address.port), timeout=20)
    connection.sendall(sent)
    return connection


def assert_no_trouble(log: str) -> None:
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line for line in lines if "exception" in line or line["level"] == "error"] == []
    assert "Traceback" not in log


def test_requests_that_have_not_come_whole_and_idle_connections_hold_no_drain():
    half = b'{"model": "' + MODEL.encode() + b'", "prompt": "h'
    with running(drain_limit_s=60) as process:
        process.client.get("/health/live")  # its connection stays
        connections = {
            "new": connect(process),
            "half a line": connect(process, b"POST /v1/comp"),
            "half a head": connect(process, HEAD + b"content-le"),
            "no body": connect(process, HEAD + b"content-length: 100\r\n\r\n"),
            "half a body": connect(process, HEAD + b"content-length: 100\r\n\r\n" + half),
            "half a chunk": connect(
                process, HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % 100 + half
            ),
            "of another API": connect(
                process,
                HEAD.replace(b"completions", b"fim/completions") + b"content-length: 9\r\n\r\n{",
            ),
        }
        used = connect(process, HEAD.replace(b"POST", b"GET").replace(b"completions", b"models"))
        used.sendall(b"\r\n")
        assert b"200 OK" in used.recv(65536)
        time.sleep(0.3)
        sent = process.send()
        answers = {name: read_all(connection) for name, connection in connections.items()}
        code, log = process.end()
        assert time.monotonic() - sent < 2
        used.close()
    assert code == 0, log
    assert_no_trouble(log)
    for name in ("half a head", "no body", "half a body", "half a chunk", "of another API"):
        assert answers[name].startswith(b"HTTP/1.1 503"), name
        assert b"retry-after" in answers[name].lower()
        assert b"the server is draining" in answers[name]
    assert answers["new"] == b""
    for connection in connections.values():
        connection.close()


def test_body_that_comes_slowly_during_a_drain_is_not_waited_for():
    with running(delay_s=0.02, drain_limit_s=60) as process:
        stream = process.open_stream(max_tokens=60)
        process.send()
        wait_until(lambda: process.client.get("/health/ready").status_code == 503)
        late = connect(process, HEAD + b"content-length: 100\r\n\r\n{")
        assert late.recv(12) == b"HTTP/1.1 503"
        late.close()
        assert b"data: [DONE]" in read_all(stream)
        code, log = process.end()
    assert code == 0, log
    assert_no_trouble(log)


def begin_stream(url: str, receive_bytes: int | None = None, **fields: object) -> socket.socket:
    """receive_bytes: how much the reader's side of the connection takes in before it is read."""
    address = httpx.URL(url)
    connection = socket.socket()
    connection.settimeout(20)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect((address.host, address.port))
    body = json.dumps({"model": MODEL, "prompt": "hi", "stream": True, **fields}).encode()
    connection.sendall(HEAD + b"content-length: %d\r\n\r\n%s" % (len(body), body))
    assert connection.recv(10) == b"HTTP/1.1 2"
    return connection


def test_many_streams_finish_and_a_reader_that_stalls_is_dropped_after_the_limit(tmp_path: Path):
    """With the engine in a process of its own, which ends too."""
    limit_s = 3
    with processes.serving(
        tmp_path,
        {"step_s": 0.01},
        max_num_seqs=128,
        drain_limit_s=limit_s,
        max_num_batched_tokens=65536,
    ) as server:
        (worker,) = server.workers()
        stalled = begin_stream(
            server.url,
            4096,
            model=processes.MODEL,
            prompt=["x" * 60_000] * 8,  # said again in each choice: more than the kernel holds
            n=8,
            max_tokens=10_000,
            echo=True,
        )
        streams = [
            begin_stream(server.url, model=processes.MODEL, max_tokens=30)
            for _ in range(NUM_STREAMS)
        ]
        server.popen.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        for stream in streams:
            assert b'"finish_reason":"length"' in (answer := read_all(stream))
            assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            stream.close()
        assert server.popen.wait(10) == 0, server.log()
        assert time.monotonic() - sent < limit_s + 2
        stalled.close()
        assert not worker.is_running()
        assert_no_trouble(server.log())
        events = [line["event"] for line in server.lines()]
        assert {"requests_cut_off", "connections_dropped"} <= set(events)


def test_second_signal_ends_a_drain_of_many_streams_at_once():
    with running(delay_s=0.05) as process:
        for _ in range(NUM_STREAMS):
            process.open_stream(max_tokens=5000)
        process.send()
        wait_until(lambda: process.client.get("/health/ready").status_code == 503)
        sent = process.send()
        code, log = process.end()
        assert code == 128 + signal.SIGTERM
        assert time.monotonic() - sent < 1
    assert_no_trouble(log)


@pytest.mark.parametrize("delay_s", [0, 0.001])
def test_reader_that_stalls_leaves_no_traceback(delay_s):
    """At full speed its connection's buffers are full; else some of the tokens still fit in."""
    with running(delay_s=delay_s, drain_limit_s=0.5) as process:
        process.open_stream(max_tokens=50_000)
        time.sleep(0.3)
        process.send()
        code, log = process.end()
    assert code == 0, log
    assert_no_trouble(log)
    assert "requests_cut_off" in log
