"""Which HTTP server to build on: what each refuses, and what a streamed token costs.

    .venv/bin/python -m benchmarks.http_servers --peers ENVIRONMENT [--record]

`--peers` names an environment with hypercorn, granian and uvicorn, which are no dependencies of
this project: `python -m venv E && E/bin/pip install hypercorn granian 'uvicorn[standard]' h11`.
Every server runs one bare ASGI application that answers anything and streams on request; each gets
the raw inputs that the tests have for ours, as far as they can be judged without our application.
An input counts as refused where it got an error, or no answer and the connection closed.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import record
from tests.service.server import raw_http_inputs as inputs
from tests.service.server.raw_http import RawConnection

ROOT = Path(__file__).parent.parent
ROUNDS = 5
STREAMS_PER_ROUND = 20
TOKENS_PER_STREAM = 1000
PATIENCE_S = 15.0  # for what only a deadline ends: ours have 1.5 s here, others 5 s if they can
STREAM = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"

APPLICATION = """
import asyncio

PIECE = b'data: {"choices":[{"index":0,"text":" word","finish_reason":null}]}\\n\\n'


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError(scope["type"])
    has_more = True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":  # the server refused what followed
            return
        has_more = message.get("more_body", False)
    start = {"type": "http.response.start", "status": 200}
    if scope["path"] != "/stream":
        await send({**start, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        return
    await send({**start, "headers": [(b"content-type", b"text/event-stream")]})
    for _ in range(TOKENS):
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
"""

OURS = f"""
import socket, sys
import uvloop, uvicorn
from application import app
from service.server.connections import Connections
from service.server.front import Front
from service.server.limits import ConnectionLimits

limits = ConnectionLimits(
    header_timeout_s={inputs.HEADER_TIMEOUT_S}, body_timeout_s={inputs.BODY_TIMEOUT_S},
    first_byte_timeout_s={inputs.FIRST_BYTE_TIMEOUT_S}, idle_timeout_s={inputs.IDLE_TIMEOUT_S})
server = uvicorn.Server(Front(connections=Connections(limits)).config(app))
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
uvloop.run(server.serve(sockets=[listener]))
"""

# Which inputs say something of the server alone: not those about keys, routes and sizes of bodies.
GROUPS = {
    "versions": inputs.VERSIONS,
    "headers": inputs.HEADERS,
    "bodies": inputs.BODIES,
    "targets": inputs.PATHS,
    "deadlines": inputs.DEADLINES,
}
BY_APPLICATION = {401, 404, 405, 413, 415}  # our application's answers, not the server's


def must_be_refused(case: inputs.RawInput) -> bool:
    """Whether an input is one that no server should take, by our own table."""
    last = case.statuses[-1:] or (0,)
    return case.closes and (last[0] in {400, 408, 414, 417, 431, 505, 0} or "no other" in case.name)


def commands(peers: Path, port: int) -> dict[str, list[str]]:
    """How each server is started."""
    own, python = str(sys.executable), str(peers / "bin/python")
    where = ["--host", "127.0.0.1", "--port", str(port)]
    uvicorn = [python, "-m", "uvicorn", "application:app", *where, "--no-access-log"]
    return {
        "tetrad (uvicorn, own protocol)": [own, "ours.py", str(port)],
        "uvicorn, httptools": [*uvicorn, "--http", "httptools", "--loop", "uvloop"],
        "uvicorn, h11": [*uvicorn, "--http", "h11", "--loop", "uvloop"],
        "hypercorn": [
            *(python, "-m", "hypercorn", "application:app", "--bind", f"127.0.0.1:{port}"),
            *("--worker-class", "uvloop", "--read-timeout", "5"),
        ],
        "granian": [
            *(str(peers / "bin/granian"), "--interface", "asginl", "--loop", "uvloop"),
            *(*where, "--no-ws", "--http", "1", "--http1-header-read-timeout", "5000"),
            "application:app",
        ],
    }


class Server:
    """One server's process, and those it started."""

    def __init__(self, command: list[str], folder: Path, port: int) -> None:
        self.address = ("127.0.0.1", port)
        environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
        self._log = (folder / "log").open("w")
        self._popen = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=self._log, stderr=self._log
        )
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(self.address, timeout=1).close()
                return
            except OSError:
                if time.monotonic() > until or self._popen.poll() is not None:
                    raise
                time.sleep(0.1)

    def cpu_s(self) -> float:
        """Processor time so far, user and system, of the process and its children."""
        main = psutil.Process(self._popen.pid)
        return sum(sum(one.cpu_times()[:2]) for one in (main, *main.children(recursive=True)))

    def close(self) -> None:
        for child in psutil.Process(self._popen.pid).children(recursive=True):
            child.kill()
        self._popen.kill()
        self._popen.wait()
        self._log.close()


def is_refused(server: Server, case: inputs.RawInput) -> bool:
    """Whether an input ends with an error, or with nothing, and not with an open connection."""
    connection = RawConnection(server.address, PATIENCE_S)
    try:
        connection.send(*case.pieces)
        num_before = max(0, len(case.statuses) - 1)
        for _ in range(num_before):
            connection.read()
        if case.name == "no other request":
            connection.read()
            return connection.is_at_end()
        answer = connection.read()
        return answer is None or answer.status >= 400
    except (OSError, ValueError):  # kept open in silence, or no HTTP
        return False
    finally:
        connection.close()


def is_served(server: Server, case: inputs.RawInput) -> bool:
    """Whether an input that is unusual and right gets its answer."""
    connection = RawConnection(server.address, PATIENCE_S)
    try:
        connection.send(*case.pieces)
        answers = [connection.read() for _ in case.statuses]
        return all(answer is not None and answer.status < 400 for answer in answers)
    except (OSError, ValueError):
        return False
    finally:
        connection.close()


def time_tokens(server: Server) -> float:
    """Return the microseconds of processor time that one streamed token takes."""
    began = 0.0
    for number in range(ROUNDS + 1):
        if number == 1:  # the first warms up
            began = server.cpu_s()
        for _ in range(STREAMS_PER_ROUND):
            connection = RawConnection(server.address, PATIENCE_S)
            connection.send(STREAM)
            answer = connection.read()
            assert answer is not None
            assert answer.body.count(b"data:") == TOKENS_PER_STREAM
            connection.close()
    return (server.cpu_s() - began) / (ROUNDS * STREAMS_PER_ROUND * TOKENS_PER_STREAM) * 1e6


def measure(name: str, command: list[str], folder: Path, port: int) -> dict[str, Any]:
    server = Server(command, folder, port)
    try:
        token_us = time_tokens(server)
        row: dict[str, Any] = {"server": name, "token_us": round(token_us, 2)}
        taken: list[str] = []
        with ThreadPoolExecutor(24) as threads:
            for group, cases in GROUPS.items():
                wrong = [case for case in cases if must_be_refused(case)]
                refused = list(threads.map(lambda case: is_refused(server, case), wrong))
                row[group] = f"{sum(refused)} of {len(wrong)}"
                taken += [case.name for case, one in zip(wrong, refused, strict=True) if not one]
            right = [
                case
                for cases in GROUPS.values()
                for case in cases
                if not must_be_refused(case) and not BY_APPLICATION & set(case.statuses)
            ]
            served = list(threads.map(lambda case: is_served(server, case), right))
        row["right ones served"] = f"{sum(served)} of {len(right)}"
        row["taken"] = taken
        row["not served"] = [c.name for c, one in zip(right, served, strict=True) if not one]
        return row
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, required=True, help="environment with the others")
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        application = APPLICATION.replace("TOKENS", str(TOKENS_PER_STREAM))
        (folder / "application.py").write_text(application)
        (folder / "ours.py").write_text(OURS)
        for server in commands(arguments.peers.absolute(), 0):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            command = commands(arguments.peers.absolute(), port)[server]
            rows.append(measure(server, command, folder, port))
            print(rows[-1], flush=True)
    table = Table(*(name for name in rows[0] if name not in ("taken", "not served")))
    for row in rows:
        table.add_row(*(str(row[column.header]) for column in table.columns))
    Console().print(table)
    if arguments.record:
        names = ["hypercorn", "granian", "uvicorn", "httptools", "h11", "uvloop"]
        program = f"import importlib.metadata as m; print(*(m.version(n) for n in {names}))"
        python = str(arguments.peers / "bin/python")
        versions = subprocess.run([python, "-c", program], capture_output=True, text=True)
        settings = {
            "rounds": ROUNDS,
            "streams_per_round": STREAMS_PER_ROUND,
            "tokens_per_stream": TOKENS_PER_STREAM,
            "patience_s": PATIENCE_S,
            "peers": dict(zip(names, versions.stdout.split(), strict=True)),
        }
        print(f"recorded in {record.write('http_servers', settings, rows)}")


if __name__ == "__main__":
    main()
