"""Metrics and lines of a real server, whose engine's process ends and whose log nobody reads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from tests.service.fakes import wait_until
from tests.service.processes import MODEL, ROOT, serving, write_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.service.processes import ServerProcess

pytestmark = pytest.mark.slow


def value(server: ServerProcess, name: str) -> float | None:
    """A metric's only value; None where it has none."""
    lines = server.client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    assert len(found) <= 1
    return float(found[0].rpartition(" ")[2]) if found else None


def test_counters_go_on_over_restarts_and_unloading_and_gauges_end(tmp_path: Path):
    with serving(tmp_path) as server:
        server.complete(max_tokens=7)
        assert value(server, "vllm:generation_tokens_total") == 7
        (worker,) = server.workers()
        assert value(server, "tetrad_engine_resident_bytes") == pytest.approx(
            worker.memory_info().rss, rel=0.2
        )
        server.complete(user="exit", max_tokens=7)  # ends the engine's process
        server.wait_ready()
        wait_until(lambda: value(server, "tetrad_engine_restarts_total") == 1)
        before = value(server, "vllm:generation_tokens_total")
        assert before is not None
        assert before >= 7
        server.complete(max_tokens=5)
        assert value(server, "vllm:generation_tokens_total") == before + 5
        assert value(server, "vllm:request_queue_time_seconds_count") >= 2
        assert value(server, "vllm:num_requests_running") == 0
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"no HTTP at all\r\n\r\n")
            assert b" 400 " in connection.recv(100)
        text = server.client.get("/metrics").text
        assert 'tetrad_rejections_total{caller="none",reason="invalid_http"} 1.0' in text
        assert 'tetrad_connections_closed_total{reason="refused"} 1.0' in text
        assert value(server, "tetrad_connections_open") >= 1
        server.admin("unload", model=MODEL)
        wait_until(lambda: server.state_of(MODEL) == "unloaded")
        assert value(server, "vllm:generation_tokens_total") == before + 5
        assert value(server, "vllm:num_requests_running") is None
        outcomes = [line["outcome"] for line in server.lines() if line["event"] == "request"]
        assert outcomes[:3] == ["length", "engine_dead", "length"]


def test_no_line_is_written_where_nobody_wants_one_and_the_last_ones_are_not_lost(tmp_path: Path):
    with serving(tmp_path, log_requests=False) as server:
        server.complete()
        assert "request" not in [line["event"] for line in server.lines()]
    with serving(tmp_path) as server:
        for _ in range(20):
            server.complete()
        server.popen.terminate()
        assert server.popen.wait(20) == 0
        events = [line["event"] for line in server.lines()]
    assert events.count("request") == 20
    assert "stopping" in events


def test_a_log_that_nobody_reads_holds_no_request_up(tmp_path: Path):
    write_tokenizer(tmp_path)
    settings = {"variant": MODEL, "port": 0, "log_format": "json"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.service.process_server", json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, "FAKE_ENGINE": json.dumps({"folder": str(tmp_path)})},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        events = iter(process.stderr.readline, "")
        url = next(line["url"] for line in map(json.loads, events) if "url" in line)
        with httpx.Client(base_url=url, timeout=5) as client:
            # The engine's process starts beside other tests; the log has no room to say when.
            wait_until(lambda: client.get("/health/ready").status_code == 200, limit_s=60)
            began = time.monotonic()
            for _ in range(600):  # of 250 bytes and more: a pipe holds 64 KiB
                assert client.get("/v1/nothing").status_code == 404
            body = {"model": MODEL, "prompt": "hi", "max_tokens": 3, "user": "chatty"}
            # Each of its steps logs more than a pipe holds.
            assert client.post("/v1/completions", json=body).status_code == 200
            assert time.monotonic() - began < 30
            process.terminate()
            assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
