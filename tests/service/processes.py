"""Server processes whose engines' processes run a fake engine, for tests that kill things."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import psutil

from tests.engine.fake_engine import expected_tokens
from tests.service.fakes import ByteTokenizer, wait_until
from tests.watching import whole_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[2]
MODEL = "fake/model"
ADMIN_KEY = "sk-admin"
ASCII_END = 98  # see `fake_worker`


def write_tokenizer(folder: Path) -> ByteTokenizer:
    """Write a byte tokenizer's files, where the fake engine says that its model lies."""
    tokenizer = ByteTokenizer()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


class ServerProcess:
    """A server, its engines, and what it said."""

    def __init__(
        self,
        folder: Path,
        engine: dict[str, Any],
        settings: dict[str, Any],
        wrapper: Sequence[str] = (),
    ) -> None:
        self.tokenizer = write_tokenizer(folder)
        self._log = folder / "log"
        with self._log.open("w") as log:
            self.popen = subprocess.Popen(
                [
                    *wrapper,
                    *(sys.executable, "-m", "tests.service.process_server", json.dumps(settings)),
                ],
                cwd=ROOT,
                env={**os.environ, "FAKE_ENGINE": json.dumps({"folder": str(folder), **engine})},
                stderr=log,
                process_group=0,
            )
        self.process = psutil.Process(self.popen.pid)
        wait_until(lambda: bool(self._find_url()) or self.popen.poll() is not None, limit_s=30)
        self.url = self._find_url()
        self.client = httpx.Client(base_url=self.url, timeout=20)

    def lines(self) -> list[dict[str, Any]]:
        """What has been logged."""
        return [json.loads(line) for line in whole_lines(self._log) if line.startswith("{")]

    def log(self) -> str:
        return self._log.read_text()

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/health/ready").status_code == 200
        return False

    def wait_ready(self, limit_s: float = 30) -> float:
        return wait_until(lambda: self.is_ready() or self.popen.poll() is not None, limit_s)

    def workers(self) -> list[psutil.Process]:
        """The engines' processes."""
        found = []
        for child in self.process.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "tests.service.fake_worker" in child.cmdline():
                    found.append(child)
        return found

    def complete(self, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "prompt": "hi", "max_tokens": 5, **fields}
        return self.client.post("/v1/completions", json=body)

    def expected_text(self, prompt: str, num_tokens: int) -> str:
        """What the fake engine answers a prompt with."""
        ids: Sequence[int] = expected_tokens(self.tokenizer.encode(prompt), num_tokens, ASCII_END)
        return self.tokenizer.backend_tokenizer.decode(ids)

    def admin(self, path: str = "", **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        if not body:
            return self.client.get("/admin/models", headers=headers)
        return self.client.post(f"/admin/models/{path}", json=body, headers=headers)

    def statuses(self) -> dict[str, dict[str, Any]]:
        """How the variants stand, by name; of two with one name the incoming one."""
        return {status["model"]: status for status in self.admin().json()["data"]}

    def state_of(self, name: str) -> str:
        return self.statuses()[name]["state"]

    def num_running(self) -> int:
        """How many sequences the engine runs, as far as it has reported."""
        return (self.statuses()[MODEL]["statistics"] or {"num_running": 0})["num_running"]

    def _find_url(self) -> str:
        return next((line["url"] for line in self.lines() if line["event"] == "listening"), "")


@contextlib.contextmanager
def serving(
    folder: Path,
    engine: dict[str, Any] | None = None,
    *,
    ready: bool = True,
    num_descriptors: int | None = None,
    **settings: Any,
) -> Iterator[ServerProcess]:
    """Run a server; engine: the fake one's options. num_descriptors: as `ulimit -n` sets them."""
    base = {"variant": MODEL, "port": 0, "log_format": "json", "admin_key": ADMIN_KEY}
    wrapper = () if num_descriptors is None else _with_descriptors(num_descriptors)
    server = ServerProcess(folder, engine or {}, {**base, **settings}, wrapper)
    workers: list[psutil.Process] = []
    try:
        if ready:
            server.wait_ready()
        yield server
        workers = server.workers() if server.popen.poll() is None else []
    finally:
        server.client.close()
        server.popen.kill()
        server.popen.wait()
    wait_until(lambda: not any(worker.is_running() for worker in workers))


def _with_descriptors(most: int) -> Sequence[str]:
    return ("sh", "-c", f'ulimit -n {most}; exec "$@"', "sh")
