"""What large inputs and crowds cost everybody else: a real server with the demo, asked over HTTP.

    .venv/bin/python -m benchmarks.large_inputs [--record]

*Large*: six bodies just under the cap at once, then six prompts and six chats just under context ×
longest piece, which are really encoded. Meanwhile a process of its own asks /health/live every
20 ms. Then the memory of the API's process, against that before; once the same has been sent for a
first time, as libraries keep some of what they need at their first use.
*Crowd*: 2 000 chats at once, far more than may wait, each on a connection of its own; a request's
time is from its first byte being written to its answer's last byte being read, client and server on
the same machine. Once from one process that connects and sends as fast as it can, and once from
four whose connections are open before any of them sends: then all requests lie in the server's
sockets at the same moment, and the median waits for half of them to be read. What was accepted goes
on generating meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.server import MODEL, serving

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

    from benchmarks.server import Server

HEALTH_PERIOD_S = 0.02
NUM_AT_ONCE = 6
BODY_BYTES = 4 * 1024 * 1024
MOST_NUMBERS = 440_000  # in a body: three count as one of 150 000 parts
TWICE = b', "seed": 1, "seed": 2}'
MARGIN_BYTES = 4096  # of a body or text, for what stands around it
SETTLING_S = 8.0  # until memory has been given back
NUM_CHATS = 2000
NUM_CLIENT_PROCESSES = 4
CONNECT_AT_ONCE = 100

CODE = "def merge(left, right):\n    return sorted([*left, *right], key=lambda item: item[0])\n"
KINDS = {
    "code": CODE,
    "one word": "x",
    "spaces": " ",
    "special pieces": "<|endoftext|>",
    "CJK": "\u6570\u636e\u7ed3\u6784",
    "emoji": "\U0001f600\U0001f44d",
}


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chats", type=int, default=NUM_CHATS)
    parser.add_argument("--record", action="store_true", help="write a dated result")
    arguments = parser.parse_args()
    rows = [*measure_large()]
    rows += [measure_crowd(arguments.chats, processes) for processes in (1, NUM_CLIENT_PROCESSES)]
    for row in rows:
        show(row)
    if arguments.record:
        print(record.write("large_inputs", {"model": "the demo, 4 bits, group 32"}, rows))


def show(row: dict[str, Any]) -> None:
    """Print one part's figures."""
    table = Table("figure", "value", title=row["part"])
    for name, value in row.items():
        if name != "part":
            table.add_row(name, str(value))
    Console(width=100).print(table)


# ── large inputs ────────────────────────────────────────────────────────────────────────────────


def measure_large() -> list[dict[str, Any]]:
    """Send large bodies and texts, twice; tell of health and memory at the second time."""
    with serving() as server:
        most = most_bytes(server)
        asyncio.run(send_large(server, most))
        time.sleep(SETTLING_S)
        before_mb = memory_mb(server)
        rows = []
        for part, requests in large_requests(most).items():
            with HealthWatch(server) as watch:
                began = time.monotonic()
                statuses = asyncio.run(send_all(server, requests))
                took_s = time.monotonic() - began
            rows.append(
                {
                    "part": part,
                    "answers": dict(Counter(statuses)),
                    "seconds": round(took_s, 2),
                    "largest body, bytes": max(len(body) for _, body in requests),
                    **watch.figures(),
                }
            )
        peak_mb = memory_mb(server)
        time.sleep(SETTLING_S)
        after_mb = memory_mb(server)
        memory = {"before": before_mb, "at once behind": peak_mb, "settled": after_mb}
        rows.append({"part": "API memory, MB", **memory, "more": after_mb - before_mb})
        return rows


async def send_large(server: Server, most: int) -> None:
    """Send all large requests once."""
    for requests in large_requests(most).values():
        await send_all(server, requests)


def large_requests(most: int) -> dict[str, list[tuple[str, bytes]]]:
    """Return each part's requests: a path and a body."""
    kinds = list(KINDS.values())[:NUM_AT_ONCE]
    prompt = {"model": MODEL, "max_tokens": 1}
    full = BODY_BYTES - MARGIN_BYTES
    ids = json.dumps({**prompt, "prompt": [1] * 1000}).encode()
    parts = [{"type": "text", "text": "x" * 300}] * 6
    bodies = [
        ("/v1/completions", json.dumps({**prompt, "prompt": CODE * (full // 100)}).encode()),
        ("/v1/completions", b'{"prompt": "' + b"\\u4e2d" * (full // 6) + b'"}'),
        ("/v1/chat/completions", json.dumps({"messages": [turn(parts)] * 2000}).encode()),
        ("/v1/completions", b'{"prompt": [[' + b"31999," * (full // 6) + b"1]]}"),
        ("/v1/completions", b'{"prompt": [' + b"[[]]," * (full // 5) + b"1]}"),
        ("/v1/completions", ids.ljust(full)),
    ]
    prompts = [
        ("/v1/completions", json.dumps({**prompt, "prompt": text}, ensure_ascii=False).encode())
        for text in (filled(kind, most) for kind in kinds)
    ]
    chats = [
        ("/v1/chat/completions", json.dumps(chat, ensure_ascii=False).encode())
        for chat in ({**prompt, "messages": [turn(filled(kind, most - 200))]} for kind in kinds)
    ]
    return {
        "six bodies just under the cap": bodies,
        "six bodies of numbers just under the cap": [("/v1/completions", numbers(full))] * 6,
        "six bodies with a name twice just under the cap": [("/v1/completions", twice_named(full))]
        * 6,
        "six prompts just under context x longest piece": prompts,
        "six chats just under context x longest piece": chats,
    }


def numbers(num_bytes: int) -> bytes:
    """Return a body full of the shortest numbers, which cost a parser most."""
    return b'{"prompt": [' + b"0.5," * (num_bytes // 4) + b"1]}"


def twice_named(num_bytes: int) -> bytes:
    """Return a body of as many numbers as may be, one text, and the same name twice."""
    text = b'"' + b"x" * (num_bytes - 4 * MOST_NUMBERS - 100) + b'"'
    return b'{"prompt": [' + b"0.5," * MOST_NUMBERS + b"1], " + b'"suffix": ' + text + TWICE


def turn(content: object) -> dict[str, object]:
    """Return a user's turn."""
    return {"role": "user", "content": content}


def filled(text: str, num_bytes: int) -> str:
    """Return a text repeated up to so many bytes."""
    return text * (num_bytes // len(text.encode()))


def most_bytes(server: Server) -> int:
    """Ask for the longest text that is encoded: a longer one is refused with its bound."""
    text = filled("x = 1; ", BODY_BYTES - MARGIN_BYTES)
    body = json.dumps({"model": MODEL, "prompt": text}).encode()
    told = asyncio.run(ask(server.host, server.port, "/v1/completions", body))
    words = json.loads(told.body)["error"]["message"]
    if "bytes" not in words:
        return BODY_BYTES // 2  # a body holds no text beyond the bound
    return int(words.split(" hold ")[1].split(" ")[0]) - MARGIN_BYTES


def memory_mb(server: Server) -> int:
    """Return the resident memory of the API's process."""
    return round(server.api.memory_info().rss / 1e6)


class HealthWatch:
    """A process that asks /health/live all the time."""

    def __init__(self, server: Server) -> None:
        self._is_ending = multiprocessing.Event()
        self._times: multiprocessing.Queue[list[float]] = multiprocessing.Queue()
        arguments = (server.host, server.port, self._is_ending, self._times)
        self._process = multiprocessing.Process(target=watch_health, args=arguments)
        self._found: list[float] = []

    def __enter__(self) -> HealthWatch:
        self._process.start()
        time.sleep(0.5)  # it samples before anything is sent, too
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ending.set()
        self._found = self._times.get(timeout=30)
        self._process.join()

    def figures(self) -> dict[str, Any]:
        """Return what health took, in milliseconds."""
        return {
            "health asked": len(self._found),
            "health at the median, ms": round(1e3 * statistics.median(self._found), 1),
            "health at most, ms": round(1e3 * max(self._found), 1),
        }


def watch_health(
    host: str, port: int, is_ending: Event, times: multiprocessing.Queue[list[float]]
) -> None:
    """Ask again and again on one connection; the next question does not wait for a slow answer."""

    async def run() -> list[float]:
        found: list[float] = []
        asked: set[asyncio.Task[None]] = set()

        async def once() -> None:
            found.append((await ask(host, port, "/health/live", None)).seconds)

        while not is_ending.is_set():
            task = asyncio.create_task(once())
            asked.add(task)
            task.add_done_callback(asked.discard)
            await asyncio.sleep(HEALTH_PERIOD_S)
        await asyncio.gather(*asked)
        return found

    times.put(asyncio.run(run()))


# ── a crowd ─────────────────────────────────────────────────────────────────────────────────────


def measure_crowd(num_chats: int, num_processes: int) -> dict[str, Any]:
    """Send chats at once, far more than may wait; tell how soon those are refused that may not.

    num_processes: one connects as it sends; several have all connections open before.
    """
    with serving() as server:
        each = num_chats // num_processes
        is_open_before = num_processes > 1
        start = multiprocessing.Event()
        found: multiprocessing.Queue[list[tuple[int, float]]] = multiprocessing.Queue()
        connected: multiprocessing.Queue[int] = multiprocessing.Queue()
        processes = [
            multiprocessing.Process(
                target=send_chats,
                args=(server.host, server.port, each, is_open_before, start, connected, found),
            )
            for _ in range(num_processes)
        ]
        for process in processes:
            process.start()
        for _ in processes:
            connected.get(timeout=120)
        used_s = server.api_cpu_s()
        with HealthWatch(server) as watch:
            start.set()
            answers = [answer for _ in processes for answer in found.get(timeout=120)]
        for process in processes:
            process.join()
        used_s = server.api_cpu_s() - used_s
        refused = sorted(seconds for status, seconds in answers if status == 429)
        row: dict[str, Any] = {
            "part": f"{num_chats} chats at once, of {num_processes} processes",
            "answers (0: still open when all others were refused)": dict(
                Counter(status for status, _ in answers)
            ),
        }
        if refused:
            row["429 at the median, ms"] = round(1e3 * statistics.median(refused), 1)
            row["429 at the 99th percentile, ms"] = round(
                1e3 * refused[len(refused) * 99 // 100], 1
            )
            row["429 at most, ms"] = round(1e3 * refused[-1], 1)
            row["API's processor time until all were answered or left, s"] = round(used_s, 2)
        return {**row, **watch.figures()}


def send_chats(
    host: str,
    port: int,
    count: int,
    is_open_before: bool,
    start: Event,
    connected: multiprocessing.Queue[int],
    found: multiprocessing.Queue[list[tuple[int, float]]],
) -> None:
    """Send a chat on each of many connections at once; leave those that were taken in."""
    messages = [turn("Write a function that merges two sorted lists, and say how it works.")]
    body = json.dumps({"model": MODEL, "messages": messages, "max_tokens": 200}).encode()

    async def run() -> list[tuple[int, float]]:
        open_at_once = asyncio.Semaphore(CONNECT_AT_ONCE)

        async def connect() -> Connection:
            async with open_at_once:
                return await asyncio.open_connection(host, port)

        request = request_bytes(host, "/v1/chat/completions", body)

        async def send(connection: Connection | None) -> Answer:
            return await exchange(connection or await connect(), request)

        connections: list[Connection | None] = [None] * count
        if is_open_before:
            connections = [*await asyncio.gather(*(connect() for _ in range(count)))]
        connected.put(count)
        await asyncio.to_thread(start.wait)
        tasks = [asyncio.create_task(send(one)) for one in connections]
        done, still_open = await asyncio.wait(tasks, timeout=20)
        for task in still_open:
            task.cancel()
        await asyncio.gather(*still_open, return_exceptions=True)
        answers = [task.result() for task in done]
        return [(answer.status, answer.seconds) for answer in answers] + [(0, 0.0)] * len(
            still_open
        )

    found.put(asyncio.run(run()))


# ── one request ─────────────────────────────────────────────────────────────────────────────────

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Answer:
    """What came back, and how soon."""

    def __init__(self, status: int, body: bytes, seconds: float) -> None:
        self.status = status
        self.body = body
        self.seconds = seconds


def request_bytes(host: str, path: str, body: bytes | None) -> bytes:
    """Return a request as it is sent."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def exchange(connection: Connection, request: bytes) -> Answer:
    """Send a request on an open connection and read its answer."""
    reader, writer = connection
    try:
        began = time.perf_counter()
        writer.write(request)
        answer = await reader.read()
        seconds = time.perf_counter() - began
    except ConnectionError:
        return Answer(-1, b"", 0.0)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return Answer(int(head.split(b" ", 2)[1]) if head else -1, body, seconds)


async def ask(host: str, port: int, path: str, body: bytes | None) -> Answer:
    """Ask on a connection of its own; the time is that of connecting, too."""
    began = time.perf_counter()
    connection = await asyncio.open_connection(host, port)
    answer = await exchange(connection, request_bytes(host, path, body))
    answer.seconds = time.perf_counter() - began
    return answer


async def send_all(server: Server, requests: list[tuple[str, bytes]]) -> list[int]:
    """Send requests at once; return their statuses."""
    asked = (ask(server.host, server.port, path, body) for path, body in requests)
    return [answer.status for answer in await asyncio.gather(*asked)]


if __name__ == "__main__":
    main()
