"""What a streamed token costs the server in processor time, through real HTTP.

    .venv/bin/python -m benchmarks.streamed_token [--against CHECKOUT] [--record]

A server process with a scripted engine for each side, asked in turns by this one; what is counted
is the server's own time, user and system. `--against` names a checkout of an older commit
(`git worktree add`), which runs the same script with its own code and is asked for what it can
answer: plain streams.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parent.parent
ROUNDS = 15
STREAMS_PER_ROUND = 20
TOKENS_PER_STREAM = 1000
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": ("/v1/completions", {"prompt": "hi"}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    "completion, logprobs 0": ("/v1/completions", {"prompt": "hi", "logprobs": 0}),
    "completion, logprobs 5": ("/v1/completions", {"prompt": "hi", "logprobs": 5}),
    "chat, logprobs": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hi"}], "logprobs": True},
    ),
    "chat, top_logprobs 5": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 5},
    ),
}
PLAIN = ("completion", "chat")


def serve() -> None:
    """Serve until standard input ends; say the port, then for each line the processor time.

    By the process's own clock, which counts nanoseconds: what others see of it comes in ticks of
    10 ms, 0.5 µs a token of a round.
    """
    from engine.outputs import FinishReason, TokenOutput
    from tests.service.fakes import ByteTokenizer, FakeEngine, running_server, says

    tokenizer = ByteTokenizer()
    letters = tokenizer.encode("def add(a, b): return a + b ", add_special_tokens=False)

    class Stream:
        """One token each time, as soon as it is asked for."""

        num_cached_tokens = 0
        prompt_logprobs = ()
        times = SimpleNamespace(
            submitted_at=0.0, queue_s=0.0, first_at=0.0, last_at=1.0, longest_gap_s=0.0
        )

        def __init__(self, num_top: int | None) -> None:
            self._left = TOKENS_PER_STREAM
            self._logprobs = None if num_top is None else _logprobs(letters, num_top)

        async def take(self) -> list[TokenOutput]:
            await asyncio.sleep(0)
            self._left -= 1
            position = self._left % len(letters)
            logprobs = None if self._logprobs is None else self._logprobs[position]
            reason = None if self._left else FinishReason.LENGTH
            return [TokenOutput(0, letters[position], logprobs, reason)]

        async def aclose(self) -> None:
            """Nothing runs."""

    class Engine(FakeEngine):
        """Says letters without end."""

        # An older checkout's server knows of no places.
        def submit(self, submissions: Any, *, terms: object, place: Any = None) -> Any:  # noqa: ARG002
            if place is not None:
                place.release()
            return [Stream(submission.params.logprobs) for submission in submissions]

    engine = Engine(says(tokenizer, ""), max_model_len=10 * TOKENS_PER_STREAM)
    with running_server(engine, tokenizer) as server:
        print(server.port, flush=True)
        for _ in sys.stdin:
            print(time.process_time_ns(), flush=True)


def _logprobs(letters: list[int], num_top: int) -> list[Any]:
    """Return what is told of each letter: numbers of many digits, as real ones are."""
    from engine.outputs import TokenLogprobs

    return [
        TokenLogprobs(
            -0.0123456789 * (position + 1),
            tuple((letters[(position + i) % len(letters)], -0.123456 * i) for i in range(num_top)),
        )
        for position in range(len(letters))
    ]


class Server:
    """A server process with the code of one checkout."""

    def __init__(self, checkout: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve()), "--serve"],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())

    def time_round(self, kind: str) -> float:
        """Return the microseconds of the server's time that one token took."""
        before = self._seconds()
        for _ in range(STREAMS_PER_ROUND):
            self._read_stream(*KINDS[kind])
        num_tokens = STREAMS_PER_ROUND * TOKENS_PER_STREAM
        return (self._seconds() - before) / num_tokens * 1e6

    def close(self) -> None:
        self._process.communicate("")

    def _read_stream(self, path: str, fields: dict[str, Any]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        body = {
            "model": "owner/name:gptq-4bit-32g@x",
            "max_tokens": TOKENS_PER_STREAM,
            "stream": True,
            **fields,
        }
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        text = connection.getresponse().read()
        connection.close()
        assert text.count(b"data: {") > TOKENS_PER_STREAM, text[:1000]
        assert text.endswith(b"data: [DONE]\n\n")

    def _seconds(self) -> float:
        """Return the processor time, user and system, of the server so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()) / 1e9


def measure(against: Path | None) -> list[dict[str, Any]]:
    """Ask both servers in turns; return a row for each kind of stream."""
    servers = {"now": Server(ROOT)}
    if against is not None:
        servers["before"] = Server(against)
    asked = [(side, kind) for side in servers for kind in (KINDS if side == "now" else PLAIN)]
    times: dict[tuple[str, str], list[float]] = {one: [] for one in asked}
    for number in range(ROUNDS + 1):
        for side, kind in asked if number % 2 else reversed(asked):
            found = servers[side].time_round(kind)
            if number:  # the first warms up
                times[side, kind].append(found)
    for server in servers.values():
        server.close()
    return [
        {
            "stream": kind,
            "code": side,
            "token_us": round(statistics.median(found), 2),
            "token_us_best": round(min(found), 2),
        }
        for (side, kind), found in times.items()
    ]


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Compare: plain streams with those before, logprobs with plain ones of the same endpoint."""
    us = {(row["code"], row["stream"]): row["token_us"] for row in rows}
    found = {}
    for side, kind in us:
        base = ("before", kind) if kind in PLAIN else ("now", kind.split(",")[0])
        if side == "now" and base in us:
            found[f"{kind} / {' '.join(reversed(base))}"] = round(us[side, kind] / us[base], 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--against", type=Path, help="checkout of an older commit")
    parser.add_argument("--record", action="store_true", help="write a result file")
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    rows = measure(arguments.against)
    compared = ratios(rows)
    for row in rows:
        print(f"{row['stream']:26} {row['code']:7} {row['token_us']:7} µs {row['token_us_best']:7}")
    for name, ratio in compared.items():
        print(f"{name:60} {ratio}")
    if arguments.record:
        from benchmarks import record

        settings: dict[str, Any] = {
            "rounds": ROUNDS,
            "streams_per_round": STREAMS_PER_ROUND,
            "tokens_per_stream": TOKENS_PER_STREAM,
            "against": record.commit_of(arguments.against),
            "ratios": compared,
        }
        print(record.write("streamed_token", settings, rows))


if __name__ == "__main__":
    main()
