"""Large bodies and texts against a real server: each gets its answer, and memory comes back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from tests.service.fakes import wait_until
from tests.service.processes import ServerProcess, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

FULL = 4 * 1024 * 1024 - 4096
ALLOWED_BYTES = 50 * 1024 * 1024
BODIES = [
    (400, b'{"prompt": [' + b"[[]]," * (FULL // 5) + b"1]}"),
    (400, b"{" + b",".join(b'"%d":1' % n for n in range(FULL // 12)) + b"}"),
    (400, b'{"prompt": "' + b"\\u4e2d" * (FULL // 6) + b'"}'),
    (400, b'{"prompt": [' + b"31," * (FULL // 4) + b"1]}"),
    (400, json.dumps({"prompt": "f(a, [b], {c: d}) " * (FULL // 18)}).encode()),
    (200, json.dumps({"prompt": "hi", "max_tokens": 1}).encode().ljust(FULL)),
]


def send_at_once(server: ServerProcess) -> list[httpx.Response]:
    headers = {"content-type": "application/json"}

    def send(body: bytes) -> httpx.Response:
        return httpx.post(f"{server.url}/v1/completions", content=body, headers=headers, timeout=60)

    with ThreadPoolExecutor(len(BODIES)) as pool:
        sent = [pool.submit(send, body) for _, body in BODIES]
        while not all(one.done() for one in sent):
            assert server.client.get("/health/live").status_code == 200
        return [one.result() for one in sent]


def test_six_bodies_at_once_are_answered_and_leave_no_memory_behind(tmp_path: Path):
    with serving(tmp_path) as server:
        send_at_once(server)  # what libraries keep of their first use stays
        before = server.process.memory_info().rss
        answers = send_at_once(server)
        assert [answer.status_code for answer in answers] == [status for status, _ in BODIES]
        assert "max_body_parts" in answers[0].json()["error"]["message"]
        wait_until(lambda: server.process.memory_info().rss < before + ALLOWED_BYTES, limit_s=20)
        assert server.complete().status_code == 200
