"""The image as it is run: it becomes ready and healthy, and drains 32 streams when it is stopped.

The same container is then started again, with what its volume kept.

    docker build -f docker/Dockerfile -t tetrad .
    .venv/bin/python -m benchmarks.image [--image tetrad] [--port 8791] [--record]

Whole answers, and exit code 0, are what a rolling update of containers relies on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import time
from typing import Any

import httpx2 as httpx

from benchmarks import record

NAME = "tetrad-image-test"
KEY = "sk-image"
NUM_STREAMS = 32
TOKENS = 150  # some seconds of each stream
READY_LIMIT_S = 300.0  # the demo is built first
HEALTHY_LIMIT_S = 30.0  # Docker asks every 10 s
GRACE_S = 100  # as in docker/compose.yaml
INSIDE = """
import json, os, platform
from importlib import metadata
from native.library import why_not
inside = {"python": platform.python_version(), "torch": metadata.version("torch")}
inside["cpu kernels"] = why_not() or "compiled"
print(json.dumps(inside | {"uid": os.getuid()}))
"""


def main() -> None:
    """Run the container; fail where it does not do as it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default="tetrad")
    parser.add_argument("--port", type=int, default=8791)
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()
    row = _describe(arguments.image) | _measure(arguments.image, arguments.port)
    print(json.dumps(row, indent=1))
    if arguments.record:
        print(record.write("image", {"streams": NUM_STREAMS, "tokens": TOKENS}, [row]))
    is_drained = row["streams under way at the stop"] == row["whole streams"] == NUM_STREAMS
    is_ended = row["exit code"] == row["exit code when idle"] == 0
    is_closed = row["status without the key"] == 401 and not row["key in the log"]
    if not (is_drained and is_ended and is_closed and row["uid"]):
        raise SystemExit("the image does not do as it should; see above")


def _describe(image: str) -> dict[str, Any]:
    size = int(_docker("image", "inspect", "--format", "{{.Size}}", image))
    options = ("--rm", "--network", "none", "--entrypoint", "python3")
    return {
        "image MB": round(size / 1e6),
        **json.loads(_docker("run", *options, image, "-c", INSIDE)),
    }


def _measure(image: str, port: int) -> dict[str, Any]:
    _remove()
    # The machine's own network: also where containers cannot be given one.
    environment = [f"TETRAD_API_KEY={KEY}", f"TETRAD_PORT={port}"]
    options = [part for one in environment for part in ("--env", one)]
    url = f"http://127.0.0.1:{port}"
    try:
        began = time.monotonic()
        _docker("run", "--detach", "--name", NAME, "--network", "host", *options, image)
        row = asyncio.run(_try_out(url, began))
        row["exit code"] = _state()["ExitCode"]
        began = time.monotonic()
        _docker("start", NAME)
        row["seconds until ready again"] = asyncio.run(_start_again(url, began))
        _stop()
        row["exit code when idle"] = _state()["ExitCode"]
        row["key in the log"] = KEY in _docker("logs", NAME)
    finally:
        _remove()
    return row


async def _try_out(url: str, began: float) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {KEY}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=300, limits=limits
    ) as client:
        await _wait_ready(client)
        ready_s = time.monotonic() - began
        await _wait_healthy()
        healthy_s = time.monotonic() - began
        stranger = await client.get("/v1/models", headers={"authorization": "Bearer no"})
        scraped = await client.get("/metrics")
        begun = [asyncio.Event() for _ in range(NUM_STREAMS)]
        streams = [
            asyncio.create_task(_stream(client, number, begun[number]))
            for number in range(NUM_STREAMS)
        ]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 120)
        stopping = time.monotonic()
        num_under_way = sum(not stream.done() for stream in streams)
        stop = asyncio.create_task(asyncio.to_thread(_stop))
        answers = await asyncio.gather(*streams)
        await stop
        return {
            "seconds until ready": round(ready_s, 1),
            "seconds until healthy": round(healthy_s, 1),
            "status without the key": stranger.status_code,
            "status of /metrics": scraped.status_code,
            "streams under way at the stop": num_under_way,
            "whole streams": sum(answers),
            "seconds from the stop to the end": round(time.monotonic() - stopping, 1),
        }


async def _start_again(url: str, began: float) -> float:
    async with httpx.AsyncClient(base_url=url) as client:
        await _wait_ready(client)
    return round(time.monotonic() - began, 1)


async def _wait_ready(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline:
        try:
            if (await client.get("/health/ready")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.5)
    raise SystemExit(f"not ready after {READY_LIMIT_S:.0f} s:\n{_docker('logs', NAME)[-2000:]}")


async def _wait_healthy() -> None:
    """Wait until Docker's own check has passed, which asks by itself."""
    deadline = time.monotonic() + HEALTHY_LIMIT_S
    while (health := _state()["Health"])["Status"] != "healthy":
        if time.monotonic() > deadline:
            raise SystemExit(f"ready, but not healthy: {json.dumps(health, indent=1)}")
        await asyncio.sleep(0.5)


async def _stream(client: httpx.AsyncClient, number: int, begun: asyncio.Event) -> bool:
    """Read a stream; return whether it came whole. begun: set by its first text."""
    body = {
        "model": "demo",
        "prompt": f"Number {number}: ",
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    is_done, num_tokens = False, 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            data = line.removeprefix("data: ")
            if data == line:  # an empty line, or a comment
                continue
            begun.set()
            is_done = data == "[DONE]"
            if not is_done and (usage := json.loads(data).get("usage")):
                num_tokens = usage["completion_tokens"]
    return is_done and num_tokens == TOKENS


def _state() -> dict[str, Any]:
    state: dict[str, Any] = json.loads(_docker("inspect", "--format", "{{json .State}}", NAME))
    return state


def _stop() -> None:
    _docker("stop", "-t", str(GRACE_S), NAME)


def _remove() -> None:
    """Remove the container, and the volume that was made for it."""
    _docker("rm", "--force", "--volumes", NAME, check=False)


def _docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"docker {arguments[0]}: {done.stderr}")
    return done.stdout + done.stderr if arguments[0] == "logs" else done.stdout


if __name__ == "__main__":
    main()
