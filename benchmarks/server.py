"""A real server process with the demo, for benchmarks of what lies around the engine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2 as httpx
import psutil

from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.demo.branches import default_branch
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = "demo"
ADMIN_KEY = "benchmark"
START_LIMIT_S = 300.0
LARGE_BODY = 200_000  # bytes


class Server:
    """A server that is ready, and what its processes use."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self._process = process
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 0
        self.api = psutil.Process(process.pid)
        self._client = httpx.Client(base_url=url, timeout=30)

    def wait_ready(self) -> None:
        """Return once the server says so."""
        deadline = time.monotonic() + START_LIMIT_S
        while self._client.get("/health/ready").status_code != 200:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError("the server did not become ready")
            time.sleep(0.1)

    def check(self, model: str) -> dict[str, Any]:
        """Ask the engine whether its accounting is right."""
        return self._admin("POST", "/check", {"model": model})

    def statistics(self, model: str) -> dict[str, Any]:
        """Return what the engine last told of itself."""
        statistics: dict[str, Any] = self._told_of(model)["statistics"]
        return statistics

    def engine_pid(self, model: str) -> int:
        """Name the process of a model's engine."""
        return int(self._told_of(model)["pid"])

    def send_large_body(self) -> None:
        """Send a body that is refused; when it is let go, the server gives free memory back."""
        headers = {"content-type": "application/json"}
        self._client.post("/v1/completions", content=b" " * LARGE_BODY, headers=headers)

    def api_cpu_s(self) -> float:
        """Seconds of processor time that the API's process has used."""
        times = self.api.cpu_times()
        return times.user + times.system

    def _told_of(self, model: str) -> dict[str, Any]:
        (found,) = [one for one in self._admin("GET", "")["data"] if one["model"] == model]
        return found

    def _admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self._client.request(
            method,
            f"/admin/models{path}",
            json=body,
            headers={"authorization": f"Bearer {ADMIN_KEY}"},
        )
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
        return told


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[Server]:
    """Serve the demo, or what the flags name; end the server afterwards."""
    command = ["-m", "service.cli", "serve", "--port", "0", "--log-format", "json"]
    with _running([*command, "--admin-key", ADMIN_KEY, *flags], {}) as server:
        yield server


@contextlib.contextmanager
def pretending(max_num_seqs: int, step_s: float) -> Iterator[Server]:
    """Serve the demo's texts by an engine that computes nothing, in a process of its own.

    step_s: what a step takes. Its tokens are among the commonest of the vocabulary, as in a text.
    """
    demo = build_demo(default_cache_dir(), [default_branch()], on_progress=print)
    snapshot = open_snapshot(
        parse_spec(demo.default_spec), cache_dir=demo.cache_dir, local_files_only=True
    )
    settings = {
        "variant": "pretended/model",
        "served_model_name": MODEL,
        "port": 0,
        "log_format": "json",
        "admin_key": ADMIN_KEY,
        "max_num_seqs": max_num_seqs,
    }
    engine = {
        "folder": str(snapshot.folder),
        "step_s": step_s,
        "vocab_size": 49_152,
        "answer_ids_end": 5_000,
    }
    command = ["-m", "tests.service.process_server", json.dumps(settings)]
    with _running(command, {"FAKE_ENGINE": json.dumps(engine)}) as server:
        yield server


@contextlib.contextmanager
def _running(arguments: list[str], environment: dict[str, str]) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as writable:
            process = subprocess.Popen(
                [sys.executable, *arguments], stderr=writable, env={**os.environ, **environment}
            )
        try:
            server = Server(process, _find_url(process, log))
            server.wait_ready()
            yield server
        finally:
            process.terminate()
            process.wait(60)


def _find_url(process: subprocess.Popen[bytes], log: Path) -> str:
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("{") and "url" in (told := json.loads(line)):
                return str(told["url"])
        time.sleep(0.05)
    raise RuntimeError(f"the server ended before it listened:\n{log.read_text()}")
