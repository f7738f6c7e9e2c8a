"""The life of the server's process: loading, draining, ending. Real processes, a fake engine."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import psutil
import pytest

from service.errors import BindError
from service.server.uvicorn_server import listen, url_of
from tests.service.fakes import MODEL, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]


class Process:
    """A running server."""

    def __init__(self, **options: Any) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.service.fake_server", json.dumps(options)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = self.popen.stdout.readline().strip()
        self.client = httpx.Client(base_url=self.url, timeout=20)
        self._connections: list[socket.socket] = []

    def is_ready(self) -> bool:
        try:
            return self.client.get("/health/ready").status_code == 200
        except httpx.ConnectError:  # between bind and accept
            return False

    def send(self, number: int = signal.SIGTERM) -> float:
        """Send a signal; return when."""
        self.popen.send_signal(number)
        return time.monotonic()

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and the log."""
        _, log = self.popen.communicate(timeout=30)
        return self.popen.returncode, log

    def close(self) -> None:
        """Let go of every connection."""
        self.client.close()
        for connection in self._connections:
            connection.close()

    def open_stream(self, max_tokens: int) -> socket.socket:
        """Begin a stream, and read its first bytes."""
        address = httpx.URL(self.url)
        connection = socket.create_connection((address.host, address.port), timeout=20)
        self._connections.append(connection)
        body = json.dumps(
            {"model": MODEL, "prompt": "hi", "max_tokens": max_tokens, "stream": True}
        ).encode()
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert connection.recv(10) == b"HTTP/1.1 2"
        return connection


@contextlib.contextmanager
def running(*, ready: bool = True, **options: Any) -> Iterator[Process]:
    process = Process(**options)
    try:
        if ready:
            wait_until(process.is_ready, limit_s=20)
        yield process
    finally:
        process.close()
        process.popen.kill()
        process.popen.communicate()


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_server_ends_with_0_at_once(number):
    with running() as process:
        sent = process.send(number)
        code, log = process.end()
    assert code == 0, log
    assert time.monotonic() - sent < 1.5


@pytest.mark.slow
@pytest.mark.alone
def test_stopping_server_finishes_its_streams_and_takes_no_new_work():
    with running(delay_s=0.02) as process:
        streams = [process.open_stream(max_tokens=60) for _ in range(4)]
        process.send()
        wait_until(lambda: process.client.get("/health/ready").status_code == 503)
        assert process.client.get("/health/live").status_code == 200
        refused = process.client.post("/v1/completions", json={"model": MODEL, "prompt": "hi"})
        assert refused.status_code == 503
        assert "draining" in refused.json()["error"]["message"]
        assert "retry-after" in refused.headers
        for stream in streams:
            assert b'"finish_reason":"length"' in (body := read_all(stream))
            assert b"data: [DONE]" in body
        code, log = process.end()
    assert code == 0, log
    assert "cut off" not in log


@pytest.mark.slow
@pytest.mark.alone
def test_streams_past_the_limit_are_told_and_cut_off():
    with running(delay_s=0.05, drain_limit_s=0.5) as process:
        stream = process.open_stream(max_tokens=5000)
        sent = process.send()
        body = read_all(stream)
        code, log = process.end()
    assert code == 0, log
    assert b'data: {"error":{"message":"the server is stopping' in body
    assert body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert time.monotonic() - sent < 0.5 + 2


@pytest.mark.slow
@pytest.mark.alone
def test_reader_that_stalls_does_not_keep_the_process():
    with running(drain_limit_s=0.5) as process:
        process.open_stream(max_tokens=50_000)
        time.sleep(0.2)
        sent = process.send()
        code, log = process.end()
        assert code == 0, log
        assert time.monotonic() - sent < 0.5 + 2


@pytest.mark.slow
@pytest.mark.alone
def test_second_signal_ends_the_process_at_once():
    with running(delay_s=0.05) as process:
        process.open_stream(max_tokens=5000)
        process.send()
        wait_until(lambda: process.client.get("/health/ready").status_code == 503)
        sent = process.send()
        code, _ = process.end()
        assert code == 128 + signal.SIGTERM
        assert time.monotonic() - sent < 1


@pytest.mark.slow
def test_loading_server_answers_health_and_then_serves():
    with running(load_s=1, ready=False) as process:
        wait_until(lambda: process.client.get("/health/live").status_code == 200)
        response = process.client.get("/health/ready")
        assert (response.status_code, response.json()["phase"]) == (503, "loading")
        wait_until(process.is_ready)


@pytest.mark.slow
@pytest.mark.alone
def test_server_may_be_stopped_while_it_loads():
    with running(load_s=60, ready=False) as process:
        wait_until(lambda: process.client.get("/health/live").status_code == 200)
        sent = process.send()
        code, log = process.end()
    assert code == 0, log
    assert time.monotonic() - sent < 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_fails": "no such revision"}, "no such revision"),
        ({"load_breaks": True}, "ZeroDivisionError"),
        ({"engine_dies_after_s": 3.0, "load_s": 0.1}, "no_model_can_answer"),
    ],
)
def test_server_without_a_model_ends_with_1(options, message):
    with running(ready=False, **options) as process:
        code, log = process.end()
    assert code == 1
    assert message in log


@pytest.mark.slow
def test_half_a_request_is_told_when_the_last_model_is_gone():
    with running(ready=False, engine_dies_after_s=3.0, load_s=0.1) as process:
        wait_until(process.is_ready, limit_s=20)
        address = httpx.URL(process.url)
        with socket.create_connection((address.host, address.port), timeout=20) as half:
            half.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
                b"content-type: application/json\r\ncontent-length: 9\r\n\r\n{"
            )
            assert read_all(half).startswith(b"HTTP/1.1 503")
        code, _ = process.end()
    assert code == 1


def test_taken_port_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"port {port}.*in use") as caught:
            listen("127.0.0.1", port, stall_limit_s=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "::2"])
def test_address_of_another_machine_cannot_be_listened_on(host):
    with pytest.raises(BindError):
        listen(host, 0, stall_limit_s=1)


def test_port_0_takes_a_free_one():
    with listen("127.0.0.1", 0, stall_limit_s=1) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listen("::1", 0, stall_limit_s=1) as listener:
        assert url_of(listener).startswith("http://[::1]:")


@pytest.mark.slow
def test_connection_of_a_stalled_reader_is_dropped():
    """Ending the sequence is not enough: a connection that waits to be flushed would stay."""
    with running(stall_limit_s=0.5) as process:
        connection = process.open_stream(max_tokens=90_000)
        server = psutil.Process(process.popen.pid)
        ours = connection.getsockname()[1]
        wait_until(
            lambda: all(not c.raddr or c.raddr.port != ours for c in server.net_connections()),
            limit_s=15,
        )
        assert process.is_ready()
