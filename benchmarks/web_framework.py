"""What a web framework costs: FastAPI's routes beside Starlette's, with the same handlers.

    .venv/bin/python -m benchmarks.web_framework [--record]

The handlers are those of this server in kind: a request as it came, read and checked by a model of
ours; bytes back, or a stream of 200 events. Around them is the same middleware. Applications are
called in this process, without sockets, in turns, and what is counted is the process's own time.
FastAPI is no dependency of the server: `pip install fastapi` to measure it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import uvloop
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation
from starlette.responses import Response
from starlette.routing import Route

from benchmarks import record
from service.api.error_shapes import shape_rule
from service.api.event_stream import EventStream, StreamTiming
from service.api.frames import KEEP_ALIVE
from service.api.json_encoding import encode_text
from service.api.middleware import ErrorBoundary, RequestId
from service.api.openai.completions import CompletionRequest
from service.api.request_bodies import read_request
from service.api.requests import RequestLimits
from service.api.responses import JsonResponse
from service.serving.choice_reader import TextDelta

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUNDS = 30
REQUESTS_PER_ROUND = 300
STREAMS_PER_ROUND = 20
TOKENS_PER_STREAM = 200
OTHER_PATHS = (0, 40)  # declared before the one that is asked for: routers look at each in turn
IMPORTS = {
    "fastapi": "import fastapi",
    "starlette": "import starlette.applications, starlette.routing, starlette.requests",
}
LIMITS = RequestLimits(
    max_choices=8, max_prompts=64, max_messages=2048, max_stop_strings=16, max_stop_bytes=256
)
BODY = {"model": "owner/name", "prompt": "def fibonacci(n):", "max_tokens": 200, "temperature": 0}
ENVELOPE = {"id": "cmpl-0123", "object": "text_completion", "created": 1, "model": "owner/name"}
CONTEXT = SimpleNamespace(limits=LIMITS, max_body_bytes=1 << 22)  # what reading a body asks for


class Script:
    """A generation that says a word 200 times."""

    num_choices = 1

    async def run(self, deliver: Callable[[TextDelta], Awaitable[None]]) -> None:
        for _ in range(TOKENS_PER_STREAM):
            await deliver(TextDelta(0, " word", None))

    async def aclose(self) -> None:
        """Nothing runs."""


class WordFrames:
    """Frames put together from bytes, as the endpoints' own are."""

    keep_alive = KEEP_ALIVE

    def start(self, _: int) -> bytes:
        return b""

    def delta(self, delta: TextDelta) -> bytes:
        return b'data: {"choices":[{"text":' + encode_text(delta.text) + b"}]}\n\n"

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    def error(self, error: Exception) -> bytes:
        raise error


class NothingEnds:
    """The part of the server's life that a stream asks for."""

    def work(self, _: object) -> NothingEnds:
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


async def answer(http_request: Request) -> Response:
    request = await read_request(http_request, CompletionRequest, CONTEXT)
    if not request.stream:
        return JsonResponse({**ENVELOPE, "choices": [{"index": 0, "text": "a + b"}]})
    return EventStream(
        Script(),
        WordFrames(),
        lifecycle=NothingEnds(),
        timing=StreamTiming(keep_alive_interval_s=15, stall_limit_s=30),
        headers={},
    )


async def other(_: Request) -> Response:
    return JsonResponse({})


def middleware() -> list[Middleware]:
    return [Middleware(RequestId), Middleware(ErrorBoundary, shape_of=shape_rule([]))]


def make_fastapi(num_other_paths: int) -> Any:
    from fastapi import APIRouter, FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, redirect_slashes=False, middleware=middleware())
    router = APIRouter()
    for number in range(num_other_paths):
        router.get(f"/other/{number}", response_class=Response)(other)
    router.post("/v1/completions", response_class=Response)(answer)
    app.include_router(router)
    return app


def make_starlette(num_other_paths: int) -> Any:
    routes = [Route(f"/other/{number}", other) for number in range(num_other_paths)]
    routes.append(Route("/v1/completions", answer, methods=["POST"]))
    app = Starlette(routes=routes, middleware=middleware())
    app.router.redirect_slashes = False
    return app


async def call(app: Any, body: bytes) -> int:
    """Ask an application once; return how many messages it sent."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/v1/completions", "raw_path": b"/v1/completions",
        "root_path": "", "query_string": b"", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "headers": [(b"host", b"x"), (b"content-type", b"application/json"),
                    (b"content-length", str(len(body)).encode())],
    }  # fmt: skip
    pieces = [{"type": "http.request", "body": body, "more_body": False}]
    status = 0
    num_messages = 0

    async def receive() -> dict[str, Any]:
        if pieces:
            return pieces.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, num_messages
        num_messages += 1
        status = message.get("status", status)

    await app(scope, receive, send)
    assert status == 200
    return num_messages


async def time_calls(app: Any, body: bytes, count: int) -> float:
    """Return the microseconds of processor time that one call takes."""
    began = time.process_time()
    for _ in range(count):
        await call(app, body)
    return (time.process_time() - began) / count * 1e6


async def measure(num_other_paths: int) -> list[dict[str, Any]]:
    """Time both applications in turns; return a row for each."""
    apps = {
        "fastapi": make_fastapi(num_other_paths),
        "starlette": make_starlette(num_other_paths),
    }
    whole = json.dumps(BODY).encode()
    streamed = json.dumps({**BODY, "stream": True}).encode()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in apps}
    for round_number in range(ROUNDS + 1):
        order = list(apps) if round_number % 2 else list(reversed(apps))
        for name in order:
            app = apps[name]
            assert await call(app, streamed) == TOKENS_PER_STREAM + 2
            request_us = await time_calls(app, whole, REQUESTS_PER_ROUND)
            stream_us = await time_calls(app, streamed, STREAMS_PER_ROUND)
            if round_number:  # the first warms up
                times[name].append((request_us, stream_us))
    return [
        {
            "framework": name,
            "other_paths": num_other_paths,
            "request_us": round(statistics.median(request for request, _ in rounds), 1),
            "request_us_best": round(min(request for request, _ in rounds), 1),
            "stream_us": round(statistics.median(stream for _, stream in rounds), 1),
            "token_us": round(statistics.median((s - r) / TOKENS_PER_STREAM for r, s in rounds), 2),
            **time_import(name),
        }
        for name, rounds in times.items()
    ]


def time_import(name: str) -> dict[str, float]:
    """Measure what importing a framework adds to a process that has pydantic already."""
    program = (
        "import pydantic, psutil, asyncio, json, time\n"
        "size = lambda: psutil.Process().memory_info().rss / 2**20\n"
        f"time0, size0 = time.process_time(), size()\n{IMPORTS[name]}\n"
        "print((time.process_time() - time0) * 1000, size() - size0)"
    )
    runs = [
        [float(value) for value in subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.split()]
        for _ in range(5)
    ]  # fmt: skip
    import_ms, memory = (statistics.median(values) for values in zip(*runs, strict=True))
    return {"import_ms": round(import_ms), "import_mib": round(memory, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()
    rows = [row for count in OTHER_PATHS for row in uvloop.run(measure(count))]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if arguments.record:
        settings = {
            "rounds": ROUNDS,
            "requests_per_round": REQUESTS_PER_ROUND,
            "streams_per_round": STREAMS_PER_ROUND,
            "tokens_per_stream": TOKENS_PER_STREAM,
        }
        print(f"recorded in {record.write('web_framework', settings, rows)}")


if __name__ == "__main__":
    main()
