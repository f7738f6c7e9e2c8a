"""Connections that never finish a request, held against the real server's process, for a while.

As benchmarks/connections.py does with more of them, and longer.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from tests.service.fakes import wait_until
from tests.service.processes import serving
from tests.service.server.certificates import make_certificate, needs_openssl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.service.processes import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.alone]

SECONDS = 4
ANSWER_LIMIT_S = 2.0
MIN_ASKED_A_CLOSED_ONE = 10


@contextlib.contextmanager
def holding(server: ServerProcess, **counts: int) -> Iterator[subprocess.Popen[str]]:
    """Hold connections in a process of its own, which ends with the block at the latest."""
    url = httpx.URL(server.url)
    module = "tests.service.server.held_connections"
    command = [sys.executable, "-m", module, url.host, str(url.port), str(SECONDS)]
    with subprocess.Popen(
        [*command, json.dumps(counts)], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            yield holder
        finally:
            holder.kill()


def ask_meanwhile(
    server: ServerProcess, holder: subprocess.Popen[str], verify: ssl.SSLContext | bool = True
) -> int:
    """Ask over new connections, as quickly as they are answered; return how often.

    The flood takes every place once in some 60 ms, so a client that the system lets wait for longer
    between its connection and its request is the oldest idle one, and closed. It asks again, as
    the clients of OpenAI and Anthropic do, and is answered in time all the same.
    """
    num_asked = num_closed = 0
    while holder.poll() is None:
        began = time.monotonic()
        while not ask_once(server, verify):
            num_closed += 1
            assert time.monotonic() - began < ANSWER_LIMIT_S
        assert time.monotonic() - began < ANSWER_LIMIT_S
        num_asked += 1
    assert num_closed <= max(1, num_asked // MIN_ASKED_A_CLOSED_ONE)
    return num_asked


def ask_once(server: ServerProcess, verify: ssl.SSLContext | bool) -> bool:
    """Ask over a new connection; return whether it stayed open until it was answered."""
    body = {"model": "fake/model", "prompt": "hi", "max_tokens": 5}
    with httpx.Client(base_url=server.url, timeout=20, verify=verify) as client:
        try:
            answer = client.post("/v1/completions", json=body)
        except httpx.TransportError:
            return False
    assert answer.status_code == 200
    return True


def test_service_goes_on_and_descriptors_come_back(tmp_path: Path):
    limits = {
        "header_timeout_s": 1,
        "body_timeout_s": 1.5,
        "first_byte_timeout_s": 1.5,
        "idle_timeout_s": 1,
    }
    with serving(tmp_path, **limits) as server:
        server.complete()
        server.client.close()
        wait_until(lambda: not server.process.net_connections("tcp")[1:])
        before = server.process.num_fds()
        with holding(server, idle=200, half_open=50, dripping=20) as holder:
            wait_until(lambda: server.process.num_fds() > before + 200, limit_s=20)
            assert ask_meanwhile(server, holder) > 10
            ended = json.loads(holder.communicate()[0])
        assert {"idle: closed", "half_open: 408", "dripping: 408"} <= set(ended)
        wait_until(lambda: server.process.num_fds() <= before, limit_s=5)


def test_service_goes_on_with_128_descriptors(tmp_path: Path):
    with serving(tmp_path, num_descriptors=128) as server:
        server.complete()
        server.client.close()
        (line,) = (line for line in server.lines() if line["event"] == "fewer_connections")
        assert line["max_connections"] == 64
        wait_until(lambda: not server.process.net_connections("tcp")[1:])
        before = server.process.num_fds()
        with holding(server, idle=225, half_open=50, dripping=25) as holder:
            assert ask_meanwhile(server, holder) > 10
            assert "idle: closed" in json.loads(holder.communicate()[0])
        wait_until(lambda: server.process.num_fds() <= before, limit_s=5)
        assert "Traceback" not in server.log()


@needs_openssl
def test_service_goes_on_with_128_descriptors_though_hundreds_say_no_hello_in_tls(tmp_path: Path):
    certificate, key = make_certificate(tmp_path)
    tls = {"tls_certificate": str(certificate), "tls_key": str(key)}
    context = ssl.create_default_context(cafile=str(certificate))
    with serving(tmp_path, ready=False, num_descriptors=128, **tls) as server:
        with httpx.Client(base_url=server.url, verify=context) as client:
            wait_until(lambda: client.get("/health/ready").status_code == 200, limit_s=20)
        wait_until(lambda: not server.process.net_connections("tcp")[1:])
        before = server.process.num_fds()
        with holding(server, idle=300) as holder:
            assert ask_meanwhile(server, holder, context) > 5
            assert "idle: closed" in json.loads(holder.communicate()[0])
        wait_until(lambda: server.process.num_fds() <= before, limit_s=5)
        assert "Traceback" not in server.log()
