"""What the server adds to its engine: many clients at once, and the cost of a streamed token.

    .venv/bin/python -m benchmarks.serving [--record]

*Crowd*: a thousand streams of the demo at once, some left half-way, some read slowly. Every answer
must be whole and, to the last character, the one that its prompt gets alone (the engine computes
batch-invariantly for that). *Cost*: processor time of the API's process for each token that it
streams to 64 readers.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.http_client import stream
from benchmarks.server import MODEL, pretending, serving
from loaders.demo.branches import default_branch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.http_client import StreamedAnswer
    from benchmarks.server import Server

SETTLING_S = 1.0  # until what was left has been noticed

NUM_CLIENTS = 1000
NUM_LEAVING = 200
NUM_SLOW = 50
NUM_PROMPTS = 100  # so each is asked for by ten clients
SHORT_TOKENS = 16
SLOW_PAUSE_S = 0.25

NUM_STREAMS = 64
LONG_TOKENS = 400
STEP_S = 0.02

VERBS = ("count", "sort", "merge", "print", "encode", "compare")
THINGS = ("words", "prime_numbers", "invoices", "intervals", "trees", "colours", "moves")


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=NUM_CLIENTS)
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()
    rows = [measure_crowd(arguments.clients), measure_cost()]
    for row in rows:
        show(row)
    if arguments.record:
        print(record.write("serving", {"model": f"the demo, {default_branch().name}"}, rows))


def show(row: dict[str, Any]) -> None:
    """Print one part's figures."""
    table = Table("figure", "value", title=row["part"])
    for name, value in row.items():
        if name != "part":
            table.add_row(name, str(value))
    Console(width=100).print(table)


# ── a crowd ─────────────────────────────────────────────────────────────────────────────────────


def measure_crowd(num_clients: int) -> dict[str, Any]:
    """Have a crowd of clients ask at once; compare with what each prompt gets alone."""
    flags = ("--batch-invariant", "--max-queued-seqs", str(num_clients))
    # The queue's other bound is the time that reading it takes, which a crowd shall not mind.
    with serving(*flags, "--max-queue-wait-s", "3600", "--stall-limit-s", "60") as server:
        prompts = make_prompts(NUM_PROMPTS)
        alone = asyncio.run(ask_one_by_one(server, prompts))
        memory = PeakMemory(server)
        began = time.monotonic()
        answers = asyncio.run(ask_at_once(server, prompts, num_clients))
        took_s = time.monotonic() - began
        time.sleep(SETTLING_S)
        checked = server.check(MODEL)
        counted = server.statistics(MODEL)
        return {
            "part": f"crowd of {num_clients}",
            **judge(answers, alone),
            "seconds": round(took_s, 1),
            "tokens generated, alone and at once": counted["num_generated_tokens"],
            "preemptions": counted["num_preemptions"],
            "API memory before, MB": memory.before_mb,
            "API memory at most, MB": memory.stop(),
            "accounting": checked["problem"] or "right",
            "engine idle afterwards": checked["is_idle"],
        }


def make_prompts(count: int) -> list[str]:
    """Return prompts of which no two are alike, and whose answers do not end soon."""
    choose = random.Random(7)
    return [
        f"# Exercise {number}\ndef {choose.choice(VERBS)}_{choose.choice(THINGS)}(items):\n    "
        for number in range(count)
    ]


def body_of(prompt: str, num_tokens: int, user: str) -> dict[str, Any]:
    """Return a greedy request."""
    return {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": num_tokens,
        "temperature": 0,
        "user": user,
        "stream_options": {"include_usage": True},
    }


async def ask_one_by_one(server: Server, prompts: Sequence[str]) -> list[StreamedAnswer]:
    """Return what each prompt gets alone."""
    return [
        await stream(server.host, server.port, body_of(prompt, SHORT_TOKENS, "alone"))
        for prompt in prompts
    ]


async def ask_at_once(
    server: Server, prompts: Sequence[str], num_clients: int
) -> list[tuple[int, str, StreamedAnswer]]:
    """Return each client's prompt (its number), kind and answer."""
    kinds = ["leaves"] * NUM_LEAVING + ["slow"] * NUM_SLOW
    kinds += ["reads"] * (num_clients - len(kinds))
    random.Random(11).shuffle(kinds)

    async def ask(number: int, kind: str) -> tuple[int, str, StreamedAnswer]:
        prompt = number % len(prompts)
        answer = await stream(
            server.host,
            server.port,
            body_of(prompts[prompt], SHORT_TOKENS, f"client {number}"),
            leave_after=SHORT_TOKENS // 3 if kind == "leaves" else None,
            pause_s=SLOW_PAUSE_S if kind == "slow" else 0.0,
        )
        return prompt, kind, answer

    return await asyncio.gather(*(ask(number, kind) for number, kind in enumerate(kinds)))


def judge(
    answers: Sequence[tuple[int, str, StreamedAnswer]], alone: Sequence[StreamedAnswer]
) -> dict[str, Any]:
    """Count what went well and what did not."""
    counts: Counter[str] = Counter()
    for prompt, kind, answer in answers:
        wanted = alone[prompt]
        counts[f"status {answer.status}"] += 1
        if kind == "leaves" and not answer.is_complete:
            counts["left half-way"] += 1
            counts["of them with another text"] += not wanted.text.startswith(answer.text)
            continue
        counts["complete"] += answer.is_complete
        counts["incomplete"] += not answer.is_complete
        counts["with another text"] += answer.text != wanted.text
        counts["with another count"] += answer.completion_tokens != wanted.completion_tokens
    return dict(counts)


class PeakMemory:
    """Watches how much memory the API's process takes."""

    def __init__(self, server: Server) -> None:
        self._process = server.api
        self.before_mb = self._now_mb()
        self._peak_mb = self.before_mb
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Watch no longer; return the most that was seen."""
        self._is_stopping.set()
        self._thread.join()
        return self._peak_mb

    def _run(self) -> None:
        while not self._is_stopping.wait(0.1):
            self._peak_mb = max(self._peak_mb, self._now_mb())

    def _now_mb(self) -> int:
        return round(self._process.memory_info().rss / 1e6)


# ── the cost of a token ─────────────────────────────────────────────────────────────────────────


def measure_cost() -> dict[str, Any]:
    """Stream to 64 readers as fast as a GPU would; see what that costs the API's process.

    The engine's process computes nothing: the demo's kernels would make the server wait, and what
    an idle server costs would be counted as a token's.
    """
    with pretending(NUM_STREAMS, STEP_S) as server:
        prompts = make_prompts(NUM_STREAMS)
        asyncio.run(stream_all(server, prompts, SHORT_TOKENS))  # everything has run once
        used_s = server.api_cpu_s()
        began = time.monotonic()
        answers = asyncio.run(stream_all(server, prompts, LONG_TOKENS))
        took_s = time.monotonic() - began
        used_s = server.api_cpu_s() - used_s
        num_tokens = sum(answer.completion_tokens or 0 for answer in answers)
        return {
            "part": f"{NUM_STREAMS} streams",
            "complete": sum(answer.is_complete for answer in answers),
            "tokens": num_tokens,
            "tokens a second": round(num_tokens / took_s, 1),
            "API's processor time a token, all its work counted, µs": round(
                1e6 * used_s / num_tokens, 1
            ),
            "API's share of one core": round(used_s / took_s, 2),
        }


async def stream_all(
    server: Server, prompts: Sequence[str], num_tokens: int
) -> list[StreamedAnswer]:
    """Stream an answer to each prompt at once."""
    requests = (body_of(prompt, num_tokens, f"user {i}") for i, prompt in enumerate(prompts))
    return await asyncio.gather(*(stream(server.host, server.port, body) for body in requests))


if __name__ == "__main__":
    main()
