"""`tetrad serve` in a process of its own, with real engines: to be asked, killed and read.

`python -m tests.service.real_server serve …` is the command itself, but that `WORKER` in the
environment may name another module for the engines' processes, such as `faulty_worker`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import openai
import psutil

from service import app
from service.cli import main
from service.variants.handles import WORKER_COMMAND, EngineProcess
from tests.service.fakes import wait_until
from tests.watching import whole_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from service.settings import WorkerSettings
    from service.variants.handles import OnProgress
    from service.worker_protocol.load_attempt import LoadRequest

ROOT = Path(__file__).parents[2]
LOAD_LIMIT_S = 240  # of several engines on a busy machine


class RealServer:
    """A server, and what it said."""

    def __init__(self, folder: Path, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._log = folder / "log"
        with self._log.open("w") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "tests.service.real_server", "serve", *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stderr=log,
                process_group=0,
            )
        wait_until(lambda: bool(self._find_url()) or self.popen.poll() is not None, limit_s=60)
        self.url = self._find_url()
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60
        )

    def log(self) -> str:
        return self._log.read_text()

    def lines(self, event: str, *, at_least: int = 0) -> list[dict[str, Any]]:
        """What has been logged of one kind.

        at_least: so many come for certain, perhaps a moment after what they tell of: threads write
        them, in the server's process and in each engine's.
        """

        def found() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in whole_lines(self._log) if line.startswith("{")]
            return [line for line in lines if line["event"] == event]

        wait_until(lambda: len(found()) >= at_least)
        return found()

    def line(self, event: str) -> dict[str, Any]:
        """The one line of a kind."""
        (line,) = self.lines(event, at_least=1)
        return line

    def wait_settled(self) -> None:
        """Wait until every variant serves, or one was given up."""

        def is_settled() -> bool:
            states = {health["state"] for health in self.health()}
            return self.popen.poll() is not None or "failed" in states or states == {"serving"}

        wait_until(is_settled, LOAD_LIMIT_S)

    def health(self) -> list[dict[str, Any]]:
        """What `/health/ready` tells of the variants."""
        with contextlib.suppress(httpx.TransportError):
            variants: list[dict[str, Any]] = self.client.get("/health/ready").json()["variants"]
            return variants
        return []

    def model(self, name: str) -> dict[str, Any]:
        """What `/v1/models/{id}` tells of a variant."""
        model: dict[str, Any] = self.client.get(f"/v1/models/{name}").json()
        return model

    def complete(self, name: str, prompt: str, num_tokens: int) -> str:
        """Answer a prompt greedily."""
        answer = self.openai.completions.create(
            model=name, prompt=prompt, max_tokens=num_tokens, temperature=0
        )
        return answer.choices[0].text

    def engine_pid(self, name: str) -> int:
        """The process that serves a variant, or did last."""
        return [int(line["pid"]) for line in self.lines("ready") if line["model"] == name][-1]

    def _find_url(self) -> str:
        return next((line["url"] for line in self.lines("listening")), "")


@contextlib.contextmanager
def serving(
    folder: Path,
    *variants: str,
    flags: tuple[str, ...] = (),
    worker: str | None = None,
    environment: Mapping[str, str] | None = None,
    **settings: object,
) -> Iterator[RealServer]:
    """Run `tetrad serve` on the CPU until its variants serve, or one has failed.

    variants: as the command takes them, further ones as `NAME=VARIANT`.
    """
    base = {"port": 0, "log_format": "json", "device": "cpu", "num_threads": 1, "max_num_seqs": 4}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tetrad.yaml").write_text(json.dumps({**base, "local_files_only": True, **settings}))
    arguments = [*variants[:1], *(part for name in variants[1:] for part in ("--also", name))]
    arguments += ["--config", str(folder / "tetrad.yaml"), *flags]
    own = {**(environment or {}), **({} if worker is None else {"WORKER": worker})}
    server = RealServer(folder, arguments, own)
    engines: list[psutil.Process] = []
    try:
        server.wait_settled()
        yield server
        if server.popen.poll() is None:
            engines = psutil.Process(server.popen.pid).children()
    finally:
        server.client.close()
        server.openai.close()
        server.popen.kill()
        server.popen.wait()
    wait_until(lambda: not any(engine.is_running() for engine in engines))


class OtherEngineProcess:
    """Starts another module where the worker would be."""

    @staticmethod
    async def start(
        settings: WorkerSettings, load_request: LoadRequest, on_progress: OnProgress
    ) -> EngineProcess:
        command = ("-m", os.environ["WORKER"]) if "WORKER" in os.environ else WORKER_COMMAND
        return await EngineProcess.start(settings, load_request, on_progress, command=command)


if __name__ == "__main__":
    app.EngineProcess = OtherEngineProcess  # type: ignore[assignment,misc]
    main()
