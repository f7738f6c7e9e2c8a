"""Thousands of connections that never finish a request: does the server go on, and is all let go?

    .venv/bin/python -m benchmarks.connections [--seconds 90] [--record]

The server is `tetrad serve` with a fake engine (which needs no model), with its usual limits;
another process holds the connections, and begins again with each that the server closes. A third
asks for completions, each over a connection of its own. Once more with 128 descriptors.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx

from benchmarks import record
from tests.service.processes import MODEL, serving

if TYPE_CHECKING:
    from tests.service.processes import ServerProcess

PAUSE_S = 0.05
SETTLING_S = 5  # until every connection is made
AFTERWARDS_S = 4  # for the server to let go
SCENARIOS: list[tuple[str, dict[str, int], int | None, float]] = [
    ("many", {"idle": 2000, "half_open": 500, "dripping": 200}, None, 1.0),
    ("128 descriptors", {"idle": 225, "half_open": 50, "dripping": 25}, 128, 0.33),
]


def ask(url: str) -> float | None:
    """Ask for a completion over a new connection; return its milliseconds, None if it failed."""
    body = json.dumps({"model": MODEL, "prompt": "hi", "max_tokens": 5})
    began = time.perf_counter()
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return (time.perf_counter() - began) * 1000 if answer.status == 200 else None


def ask_for(url: str, seconds: float) -> list[float | None]:
    """Ask again and again for a while."""
    times = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        times.append(ask(url))
        time.sleep(PAUSE_S)
    return times


def summary(times: list[float | None]) -> dict[str, float]:
    ordered = sorted(time for time in times if time is not None)
    return {
        "requests": len(times),
        "failed": len(times) - len(ordered),
        "median_ms": round(statistics.median(ordered), 1),
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 1),
        "max_ms": round(ordered[-1], 1),
    }


def measure(
    server: ServerProcess, name: str, counts: dict[str, int], seconds: float
) -> dict[str, Any]:
    url = httpx.URL(server.url)
    alone = ask_for(server.url, 5)
    server.client.close()
    time.sleep(1)
    before = server.process.num_fds()
    began_cpu = sum(server.process.cpu_times()[:2])
    holder = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.service.server.held_connections"),
            *(url.host, str(url.port), str(seconds + SETTLING_S), json.dumps(counts)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(SETTLING_S)
    held = server.process.num_fds()
    beside = ask_for(server.url, seconds)
    ended, _ = holder.communicate()
    cpu_s = sum(server.process.cpu_times()[:2]) - began_cpu
    time.sleep(AFTERWARDS_S)
    return {
        "scenario": name,
        "connections": counts,
        "seconds": seconds,
        "alone": summary(alone),
        "beside": summary(beside),
        "descriptors_before": before,
        "descriptors_beside": held,
        "descriptors_after": server.process.num_fds(),
        "server_cpu_s": round(cpu_s, 2),
        "ended": json.loads(ended),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()
    rows = []
    for name, counts, num_descriptors, share in SCENARIOS:
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(Path(folder), num_descriptors=num_descriptors) as server,
        ):
            rows.append(measure(server, name, counts, arguments.seconds * share))
            print(json.dumps(rows[-1], indent=1), flush=True)
    if arguments.record:
        print(f"recorded in {record.write('connections', {'pause_s': PAUSE_S}, rows)}")


if __name__ == "__main__":
    main()
