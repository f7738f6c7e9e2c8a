"""The image as it is run: it becomes ready, answers, and drains 32 streams when it is stopped.

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
GRACE_S = 100  # as in docker/compose.yaml


def main() -> None:
    """Run the container; fail where it does not do as it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default="tetrad")
    parser.add_argument("--port", type=int, default=8791)
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()
    _docker("rm", "--force", NAME, check=False)
    # The machine's own network: also where containers cannot be given one.
    environment = [f"TETRAD_API_KEY={KEY}", f"TETRAD_PORT={arguments.port}"]
    options = [part for one in environment for part in ("--env", one)]
    try:
        began = time.monotonic()
        _docker("run", "--detach", "--name", NAME, "--network", "host", *options, arguments.image)
        row = asyncio.run(_try_out(f"http://127.0.0.1:{arguments.port}", began))
        state = json.loads(_docker("inspect", "--format", "{{json .State}}", NAME))
        row["exit code"] = state["ExitCode"]
        log = _docker("logs", NAME)
    finally:
        _docker("rm", "--force", NAME, check=False)
    print(json.dumps(row, indent=1))
    if arguments.record:
        print(record.write("image", {"streams": NUM_STREAMS, "tokens": TOKENS}, [row]))
    if row["whole streams"] != NUM_STREAMS or row["exit code"] != 0 or KEY in log:
        raise SystemExit("the image does not do as it should; see above")


async def _try_out(url: str, began: float) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {KEY}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=300, limits=limits
    ) as client:
        await _wait_ready(client)
        ready_s = time.monotonic() - began
        stranger = await client.get("/v1/models", headers={"authorization": "Bearer no"})
        scraped = await client.get("/metrics")
        begun = [asyncio.Event() for _ in range(NUM_STREAMS)]
        streams = [
            asyncio.create_task(_stream(client, number, begun[number]))
            for number in range(NUM_STREAMS)
        ]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 120)
        stopping = time.monotonic()
        stop = asyncio.create_task(asyncio.to_thread(_docker, "stop", f"--time={GRACE_S}", NAME))
        answers = await asyncio.gather(*streams)
        await stop
        return {
            "seconds until ready": round(ready_s, 1),
            "status without the key": stranger.status_code,
            "status of /metrics": scraped.status_code,
            "streams": NUM_STREAMS,
            "whole streams": sum(answers),
            "seconds from the stop to the end": round(time.monotonic() - stopping, 1),
        }


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


def _docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"docker {arguments[0]}: {done.stderr}")
    return done.stdout + done.stderr if arguments[0] == "logs" else done.stdout


if __name__ == "__main__":
    main()
