"""From `tetrad serve` with an empty cache to the first streamed token, by part.

    .venv/bin/python -m benchmarks.first_minutes [--rounds N] [--threads N] [--record]

Each round starts a real server on a cache folder of its own, reads its log with the time at which
each line came, and asks the README's question as soon as the server is ready. What the environment
takes before (`scripts/setup`) depends on the network and is not measured. CPU seconds are those of
the server and its engine together. Figures are medians, in seconds; goal: 35 s on two cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.command_line import make_parser

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROUNDS = 3
GOAL_S = 35.0
STOP_LIMIT_S = 60.0
QUESTION = {
    "model": "demo",
    "stream": True,
    "max_tokens": 200,
    "temperature": 0,
    "messages": [{"role": "user", "content": "Write a Python function that reverses a string."}],
}


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the server's log."""

    at: float  # seconds since the command was given
    event: str
    phase: str | None = None  # of an engine that loads

    @property
    def name(self) -> str:
        """What happened, as the parts are told apart by it."""
        phase = self.phase or ""
        return "building the demo" if phase.startswith("building the demo") else phase or self.event


# Each part ends with the first of these that comes after the part before it.
PARTS = (
    ("start of the server", ("listening",)),
    ("start of the engine's process, imports", ("choosing the variant",)),
    ("choice of the branch", ("building the demo",)),
    ("build of the branch", ("checking the files",)),
    ("load", ("self-test",)),
    ("self-test, plausibility", ("loaded",)),
    ("engine, chat template", ("ready",)),
    ("first token", ("first token",)),
)


def split(lines: Iterable[LogLine]) -> dict[str, float]:
    """Return how long each part took. Raises ValueError where the log lacks the end of one."""
    waiting = iter(lines)
    seconds: dict[str, float] = {}
    begin = 0.0
    for part, ends in PARTS:
        end = next((line.at for line in waiting if line.name in ends), None)
        if end is None:
            raise ValueError(f"the log does not say when this part ended: {part}")
        seconds[part], begin = end - begin, end
    return seconds


def read_line(text: str, at: float) -> LogLine | None:
    """Read a line of JSON; None for what is none."""
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    return LogLine(at, str(fields.get("event")), fields.get("phase"))


def measure_once(arguments: Sequence[str]) -> dict[str, float]:
    """Start a server on an empty cache and ask it; return the seconds of each part, and of CPU."""
    with TemporaryDirectory(prefix="first-minutes-") as folder:
        # Nothing that is set here may change what a newcomer gets.
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TETRAD_")}
        command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
        started = time.monotonic()
        with subprocess.Popen(
            [*command, "--log-format", "json", *arguments],
            env=kept | {"XDG_CACHE_HOME": folder},
            cwd=Path(__file__).parent.parent,
            stderr=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                seconds = split(_until_first_token(server, started))
                cpu = _cpu_seconds(server.pid)
            finally:
                server.terminate()
                server.communicate(timeout=STOP_LIMIT_S)
    return seconds | {"all": sum(seconds.values()), "CPU": cpu}


def _cpu_seconds(pid: int) -> float:
    """Add up what a server and its engine's process have taken so far."""
    server = psutil.Process(pid)
    used = [one.cpu_times() for one in (server, *server.children(recursive=True))]
    return sum(times.user + times.system for times in used)


def _until_first_token(server: subprocess.Popen[str], started: float) -> list[LogLine]:
    lines: list[LogLine] = []
    url = ""
    for text in server.stderr or ():
        line = read_line(text, time.monotonic() - started)
        if line is None:
            continue
        lines.append(line)
        if line.event == "listening":
            url = str(json.loads(text)["url"])
        if line.event == "ready":
            _stream_one_token(url)
            return [*lines, LogLine(time.monotonic() - started, "first token")]
    raise RuntimeError(f"the server ended with {server.wait()} before it was ready")


def _stream_one_token(url: str) -> None:
    body, headers = json.dumps(QUESTION).encode(), {"Content-Type": "application/json"}
    with urlopen(Request(f"{url}/v1/chat/completions", body, headers)) as stream:
        for event in stream:
            data = event.decode().removeprefix("data: ").strip()
            if data and data != "[DONE]" and json.loads(data)["choices"][0]["delta"].get("content"):
                return
    raise RuntimeError("the stream ended without a token")


def _show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("part", "seconds")
    for row in rows:
        table.add_row(str(row["part"]), f"{row['seconds']:.1f}")
    Console().print(table)


def main() -> None:
    """Measure, print, and write the result if asked."""
    parser = make_parser(__doc__, default_rounds=ROUNDS)
    parser.set_defaults(threads=None)  # as the server chooses
    arguments = parser.parse_args()
    settings = [] if arguments.threads is None else ["--num-threads", str(arguments.threads)]
    rounds = [measure_once(settings) for _ in range(arguments.rounds)]
    rows = [
        {"part": part, "seconds": round(statistics.median(one[part] for one in rounds), 2)}
        for part in rounds[0]
    ]
    _show(rows)
    if arguments.record:
        chosen = {
            "rounds": arguments.rounds,
            "num_threads": arguments.threads or "auto",
            "cores": len(os.sched_getaffinity(0)),
            "load_average_1min": os.getloadavg()[0],
            "goal_s": GOAL_S,
        }
        print(record.write("first_minutes", chosen, rows))


if __name__ == "__main__":
    main()
