"""What large inputs and crowds cost everybody else: a real server with the demo, asked over HTTP.

    .venv/bin/python -m benchmarks.large_inputs [--record]

*Large*: six bodies just under the cap at once, then six prompts and six chats just under context ×
longest piece. Half of the texts are made of longest pieces, so that they fit and are served; the
others have more tokens than fit, which is known only once they are encoded: their refusals tell how
many were counted. Meanwhile a process of its own asks /health/live every 20 ms. Then the memory of
the API's process, against that of the same server after one small request.
*Crowd*: 2 000 chats at once, far more than may wait, each on a connection of its own that is open
before, client and server on the same machine. A request's time is from its being sent to the first
byte of its answer, both as the client's process sees them. Once from one process that sends as fast
as it can and takes answers meanwhile, and once from four: then all requests lie in the server's
sockets at the same moment, and the median waits for half of them to be read, 1 000 times what one
costs. What was accepted goes on generating meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import re
import select
import socket
import statistics
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from benchmarks import record
from benchmarks.server import MODEL, serving
from benchmarks.serving import show
from loaders.cache import default_cache_dir
from loaders.demo import build_demo
from loaders.demo.branches import default_branch
from loaders.repository.opening import open_snapshot
from loaders.repository.spec import parse_spec
from service.text.text_bound import find_bound

if TYPE_CHECKING:
    from collections.abc import Iterable
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
SENT_A_LOOK = 8  # requests that are sent between two looks for answers
HEAD_BYTES = 64  # of an answer, which say its status
QUIET_S = 0.5  # without another answer: the rest was taken in
MAX_S = 60.0

CODE = "def merge(left, right):\n    return sorted([*left, *right], key=lambda item: item[0])\n"
TOO_MANY = (CODE, "x", "\U0001f600\U0001f44d")  # of which fewer bytes make a token


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chats", type=int, default=NUM_CHATS)
    parser.add_argument("--record", action="store_true", help="write a dated result")
    parser.add_argument("--only", choices=("large", "crowd"))
    arguments = parser.parse_args()
    rows = [] if arguments.only == "crowd" else measure_large()
    if arguments.only != "large":
        rows += [measure_crowd(arguments.chats, number) for number in (1, NUM_CLIENT_PROCESSES)]
    for row in rows:
        show(row)
    if arguments.record:
        print(record.write("large_inputs", {"model": f"the demo, {default_branch().name}"}, rows))


# ── large inputs ────────────────────────────────────────────────────────────────────────────────


def measure_large() -> list[dict[str, Any]]:
    """Send large bodies and texts to a fresh server; tell of health and memory."""
    longest = LongestTexts.of_demo()
    with serving() as server:
        small = json.dumps({"model": MODEL, "prompt": "x = 1", "max_tokens": 4}).encode()
        asyncio.run(send_all(server, [("/v1/completions", small)]))
        time.sleep(SETTLING_S)
        before_mb = memory_mb(server)
        rows = []
        for part, requests in large_requests(longest).items():
            with HealthWatch(server) as watch:
                began = time.monotonic()
                answers = asyncio.run(send_all(server, requests))
                took_s = time.monotonic() - began
            rows.append(
                {
                    "part": part,
                    "answers": dict(Counter(map(outcome, answers))),
                    "seconds": round(took_s, 2),
                    "largest body, bytes": max(len(body) for _, body in requests),
                    **watch.figures(),
                }
            )
        peak_mb = memory_mb(server)
        time.sleep(SETTLING_S)
        after_mb = memory_mb(server)
        memory = {"after one small request": before_mb, "at once behind": peak_mb}
        settled = {f"{SETTLING_S:g} s later": after_mb, "more": after_mb - before_mb}
        rows.append({"part": "API memory, MB", **memory, **settled})
        return rows


def outcome(answer: Answer) -> str:
    """Say what became of a large request; whether its text was encoded, where that can be told."""
    if answer.status == 200:
        return "200, encoded and served"
    words = answer.body.decode()
    if re.search(r"the text has \d+ tokens", words):
        return f"{answer.status}, encoded: its tokens were counted"
    if re.search(r"the text has \d+ bytes", words):
        return f"{answer.status}, not encoded"
    return f"{answer.status} {json.loads(words)['error']['code']}"


class LongestTexts:
    """Texts of as many bytes as a model's context may hold."""

    def __init__(self, pieces: list[str], context: int, most_bytes: int) -> None:
        self._pieces = pieces
        self._context = context
        self._most_bytes = most_bytes

    @classmethod
    def of_demo(cls) -> LongestTexts:
        """Find the demo's longest pieces, those that stay one token each when they are repeated."""
        demo = build_demo(default_cache_dir(), [default_branch()], on_progress=print)
        snapshot = open_snapshot(
            parse_spec(demo.default_spec), cache_dir=demo.cache_dir, local_files_only=True
        )
        config = json.loads((snapshot.folder / "config.json").read_text())
        context = config["max_position_embeddings"]
        tokenizer = AutoTokenizer.from_pretrained(snapshot.folder)  # type: ignore[no-untyped-call]
        backend = tokenizer.backend_tokenizer
        texts = [backend.decode([number]) for number in backend.get_vocab().values()]
        texts.sort(key=lambda text: len(text.encode()), reverse=True)
        repeating = (
            text for text in texts if len(backend.encode(text * 64, add_special_tokens=False)) == 64
        )
        pieces = list(itertools.islice(repeating, NUM_AT_ONCE // 2))
        return cls(pieces, context, (find_bound(tokenizer).token_bytes or 0) * context)

    def all(self, num_tokens_around: int) -> list[str]:
        """Return six: those that fit beside so many other tokens, then those that do not."""
        fitting = [piece * (self._context - num_tokens_around) for piece in self._pieces]
        return fitting + [filled(kind, self._most_bytes - MARGIN_BYTES) for kind in TOO_MANY]


def large_requests(longest: LongestTexts) -> dict[str, list[tuple[str, bytes]]]:
    """Return each part's requests: a path and a body."""
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
        for text in longest.all(num_tokens_around=8)
    ]
    chats = [
        (
            "/v1/chat/completions",
            json.dumps({**prompt, "messages": [turn(text)]}, ensure_ascii=False).encode(),
        )
        for text in longest.all(num_tokens_around=64)
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
    """Send chats at once, far more than may wait; tell how soon those are refused that may not."""
    with serving() as server:
        each = num_chats // num_processes
        start = multiprocessing.Event()
        found: multiprocessing.Queue[list[tuple[int, float]]] = multiprocessing.Queue()
        connected: multiprocessing.Queue[int] = multiprocessing.Queue()
        processes = [
            multiprocessing.Process(
                target=send_chats,
                args=(server.host, server.port, each, start, connected, found),
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
            "part": f"{num_chats} chats at once, from {num_processes}"
            f" {'process' if num_processes == 1 else 'processes'}",
            "measured": "client and server on one machine, connections open before; from sending a"
            " request to the first byte of its answer",
            "answers (0: taken in, unanswered when all others were refused)": dict(
                Counter(status for status, _ in answers)
            ),
        }
        if refused:
            row["429 at the median, ms"] = round(1e3 * statistics.median(refused), 1)
            row["429 at the 99th percentile, ms"] = round(
                1e3 * refused[len(refused) * 99 // 100], 1
            )
            row["429 at most, ms"] = round(1e3 * refused[-1], 1)
            row["API's processor time until 0.5 s after the last, s"] = round(used_s, 2)
        return {**row, **watch.figures()}


def send_chats(
    host: str,
    port: int,
    count: int,
    start: Event,
    connected: multiprocessing.Queue[int],
    found: multiprocessing.Queue[list[tuple[int, float]]],
) -> None:
    """Send a chat on each of many open connections at once; leave those that were taken in."""
    messages = [turn("Write a function that merges two sorted lists, and say how it works.")]
    body = json.dumps({"model": MODEL, "messages": messages, "max_tokens": 200}).encode()
    request = request_bytes(host, "/v1/chat/completions", body)
    chats = Chats(socket.create_connection((host, port)) for _ in range(count))
    connected.put(count)
    start.wait()
    chats.send(request)
    chats.read_until_quiet()
    found.put(chats.leave())


class Chats:
    """Requests, each on a connection of its own: as little as a client can do.

    Plain sockets: an event loop's own work for a request takes as long as the server's.
    """

    def __init__(self, connections: Iterable[socket.socket]) -> None:
        self._connections = {connection.fileno(): connection for connection in connections}
        self._began: dict[int, float] = {}
        self._answers: dict[int, tuple[int, float]] = {}  # status, seconds to the first byte
        self._ready = select.epoll()
        for number, connection in self._connections.items():
            connection.setblocking(False)
            self._ready.register(number, select.EPOLLIN)

    def send(self, request: bytes) -> None:
        """Send on all connections, one after the other; take answers that come meanwhile."""
        for sent, (number, connection) in enumerate(self._connections.items(), 1):
            self._began[number] = time.perf_counter()
            connection.send(request)
            if sent % SENT_A_LOOK == 0:
                self._take(0)

    def read_until_quiet(self) -> None:
        """Wait until some were answered, and for a while no other."""
        until = time.monotonic() + MAX_S
        while time.monotonic() < until:
            if not self._take(QUIET_S) and self._answers:
                return

    def leave(self) -> list[tuple[int, float]]:
        """Close all; return each one's status (0 for one that has no answer yet) and its time."""
        for connection in self._connections.values():
            connection.close()
        return [self._answers.get(number, (0, 0.0)) for number in self._connections]

    def _take(self, wait_s: float) -> bool:
        """Take the first bytes of answers that have come; return whether there were any."""
        events = self._ready.poll(wait_s)
        for number, _ in events:
            seconds = time.perf_counter() - self._began[number]
            begin = self._connections[number].recv(HEAD_BYTES)
            self._answers[number] = (int(begin[9:12]) if begin else -1, seconds)
            self._ready.unregister(number)
        return bool(events)


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


async def send_all(server: Server, requests: list[tuple[str, bytes]]) -> list[Answer]:
    """Send requests at once; return their answers."""
    asked = (ask(server.host, server.port, path, body) for path, body in requests)
    return list(await asyncio.gather(*asked))


if __name__ == "__main__":
    main()
