"""The requests of the soak: what people send, what goes wrong with it, and who leaves half-way.

Each kind is one coroutine that returns the status it was answered with, or None where it left
before there was one; beside it stand its weight and the statuses that are right.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2 as httpx

from benchmarks.server import ADMIN_KEY, MODEL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.server import Server

OTHER_MODEL = "other"  # loaded and unloaded while it is asked
CONTEXT = 2048  # tokens, of both
BLOCK_TOKENS, STEP_TOKENS = 16, 512  # of prompts: how they are cut, and the most in a step
DRIP_S = 3.0  # how long a slow sender goes on before it gives up
LIMIT_S = 120.0  # of one request
RELOAD_LIMIT_S = 240.0  # until a model serves, or is gone, on a busy machine
MAX_EXAMPLES = 20  # of answers that were wrong

OK = frozenset({200})
BUSY = frozenset({200, 429})
UNLOADED = frozenset({200, 429, 503})
REFUSED = frozenset({400, 429})  # a full server looks at no body
WORDS = (
    "sort", "a", "list", "of", "numbers", "in", "Python", "without", "copying", "it", "twice",
    "and", "print", "every", "third", "line", "naïve", "日本語", "🙂", "def", "return", "queue",
)  # fmt: skip


@dataclass(slots=True)
class Tally:
    """What was asked, and how it was answered."""

    statuses: Counter[str] = field(default_factory=Counter)  # "chat 200", "left early none"
    wrong: list[str] = field(default_factory=list)  # the first answers that were not right
    num_requests: int = 0
    num_wrong: int = 0
    num_500: int = 0

    def count(self, kind: str, status: int | None, expected: frozenset[int], detail: str) -> None:
        """Count one request."""
        self.num_requests += 1
        self.statuses[f"{kind} {status or 'left'}"] += 1
        self.num_500 += status == 500
        if status is not None and status not in expected:
            self.num_wrong += 1
            if len(self.wrong) < MAX_EXAMPLES:
                self.wrong.append(f"{kind}: {status} {detail[:200]}")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request."""

    name: str
    weight: int
    send: Callable[[Client], Awaitable[httpx.Response | None]]
    expected: frozenset[int] = OK


class Client:
    """One of those who ask, with a connection of its own and its own random numbers."""

    def __init__(self, server: Server, seed: int) -> None:
        self.random = random.Random(seed)
        self.host, self.port = server.host, server.port
        self.http = httpx.AsyncClient(base_url=f"http://{self.host}:{self.port}", timeout=LIMIT_S)

    def text(self, num_words: int) -> str:
        """Return words in no order: no two prompts are alike."""
        return " ".join(self.random.choices(WORDS, k=num_words))

    def chat_body(self, **fields: Any) -> dict[str, Any]:
        """Return a dialogue of one to five turns, some beginning as others' do."""
        opening = {"role": "system", "content": "You answer in one short sentence, politely. " * 4}
        turns = [
            {"role": ("user", "assistant")[i % 2], "content": self.text(self.random.randint(2, 40))}
            for i in range(self.random.choice((1, 1, 3, 5)))
        ]
        return {
            "model": MODEL,
            "messages": [opening, *turns] if self.random.random() < 0.5 else turns,
            "max_tokens": self.random.randint(1, 40),
            "temperature": self.random.choice((0, 0.7, 1.2)),
            "user": f"user {self.random.randint(0, 9)}",
            **fields,
        }

    def completion_body(self, num_words: int = 30, **fields: Any) -> dict[str, Any]:
        return {
            "model": MODEL,
            "prompt": self.text(num_words),
            "max_tokens": self.random.randint(1, 40),
            **fields,
        }

    async def post(self, path: str, body: object) -> httpx.Response:
        return await self.http.post(path, json=body)

    async def read_stream(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Read a stream to its end, which must be said."""
        request = {**body, "stream": True, "stream_options": {"include_usage": True}}
        answer = await self.post(path, request)
        if answer.status_code == 200 and not answer.text.rstrip().endswith("data: [DONE]"):
            raise RuntimeError(f"a stream ended without [DONE]: {answer.text[-200:]!r}")
        return answer

    async def leave(self, body: dict[str, Any], *, read: int, reset: bool) -> None:
        """Ask, read so many bytes, and go: with a reset, or with the usual end."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(raw_request("/v1/chat/completions", json.dumps(body).encode()))
            await writer.drain()
            await (reader.read(read) if read else asyncio.sleep(self.random.random()))
        finally:
            hang_up(writer, reset=reset)

    async def drip(self, data: bytes) -> None:
        """Send a few bytes at a time, and give up long before the request is whole."""
        _, writer = await asyncio.open_connection(self.host, self.port)
        try:
            for i in range(10):
                writer.write(data[4 * i : 4 * i + 4])
                await writer.drain()
                await asyncio.sleep(DRIP_S / 10)
        except ConnectionError:
            pass  # the server was first
        finally:
            hang_up(writer, reset=self.random.random() < 0.5)


def raw_request(path: str, body: bytes, *, length: int | None = None) -> bytes:
    """Return a request as it goes over the wire; length: the one it claims."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def hang_up(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Close a connection without waiting for what may still come."""
    if reset:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()


# ── kinds ───────────────────────────────────────────────────────────────────────────────────────


async def chat(client: Client) -> httpx.Response:
    return await client.post("/v1/chat/completions", client.chat_body())


async def chat_stream(client: Client) -> httpx.Response:
    return await client.read_stream("/v1/chat/completions", client.chat_body())


async def chat_with_logprobs(client: Client) -> httpx.Response:
    body = client.chat_body(n=3, logprobs=True, top_logprobs=5, temperature=0.8, max_tokens=8)
    return await client.post("/v1/chat/completions", body)


async def completion(client: Client) -> httpx.Response:
    return await client.post("/v1/completions", client.completion_body(stop=["print", "\n\n"]))


async def completion_stream(client: Client) -> httpx.Response:
    body = client.completion_body(logprobs=3, n=2, temperature=0.9, max_tokens=12)
    return await client.read_stream("/v1/completions", body)


async def echo(client: Client) -> httpx.Response:
    num_words = client.random.choice((5, 20, 20, 200))
    body = client.completion_body(num_words, echo=True, logprobs=2, max_tokens=2)
    return await client.post("/v1/completions", body)


async def many_prompts(client: Client) -> httpx.Response:
    prompts = [client.text(4) for _ in range(4)]
    return await client.post("/v1/completions", {**client.completion_body(), "prompt": prompts})


async def long_prompt(client: Client) -> httpx.Response:
    body = client.completion_body(client.random.randint(300, 600), max_tokens=4)
    return await client.post("/v1/completions", body)


async def truncated_prompt(client: Client) -> httpx.Response:
    text = client.text(2000) * client.random.randint(1, 20)
    body = client.completion_body(prompt=text, truncate_prompt_tokens=200, max_tokens=4)
    return await client.post("/v1/completions", body)


async def too_long_prompt(client: Client) -> httpx.Response:
    body = client.completion_body(prompt=client.text(2000) * client.random.randint(2, 20))
    return await client.post("/v1/completions", body)


async def too_large_body(client: Client) -> httpx.Response:
    return await client.http.post(
        "/v1/completions",
        content=b'{"prompt": "' + b"x" * 5_000_000 + b'"}',
        headers={"content-type": "application/json"},
    )


async def bad_json(client: Client) -> httpx.Response:
    body = json.dumps(client.chat_body()).encode()[: client.random.randint(1, 60)]
    headers = {"content-type": "application/json"}
    return await client.http.post("/v1/chat/completions", content=body, headers=headers)


async def bad_field(client: Client) -> httpx.Response:
    wrong = client.random.choice(
        (
            {"max_tokens": -3},
            {"temperature": "hot"},
            {"n": 1000},
            {"stop": ["x" * 300]},
            {"logit_bias": {"999999": 5}},
            {"messages": []},
            {"messages": [{"role": "nobody", "content": "\ud800"}]},
        )
    )
    body = json.dumps({**client.chat_body(), **wrong}).encode()
    headers = {"content-type": "application/json"}
    return await client.http.post("/v1/chat/completions", content=body, headers=headers)


async def unknown_model(client: Client) -> httpx.Response:
    return await client.post("/v1/chat/completions", client.chat_body(model="nobody/knows"))


async def infilling(client: Client) -> httpx.Response:
    return await client.post(
        "/infill", {"model": MODEL, "input_prefix": "a = ", "input_suffix": client.text(5)}
    )


async def tokens(client: Client) -> httpx.Response:
    answer = await client.post("/tokenize", {"model": MODEL, "prompt": client.text(200)})
    if answer.status_code != 200:
        return answer
    ids = answer.json()["tokens"]
    return await client.post("/detokenize", {"model": MODEL, "tokens": ids})


async def models(client: Client) -> httpx.Response:
    return await client.http.get("/v1/models")


async def metrics(client: Client) -> httpx.Response:
    return await client.http.get("/metrics")


async def other_model(client: Client) -> httpx.Response:
    return await client.post(
        "/v1/completions", client.completion_body(model=OTHER_MODEL, max_tokens=4)
    )


async def leave_stream(client: Client) -> None:
    body = client.chat_body(stream=True, max_tokens=200)
    await client.leave(body, read=400, reset=client.random.random() < 0.5)


async def leave_unread(client: Client) -> None:
    reset = client.random.random() < 0.5
    await client.leave(client.chat_body(max_tokens=200), read=0, reset=reset)


async def half_body(client: Client) -> None:
    _, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(raw_request("/v1/completions", b'{"model": "de', length=1000))
    await asyncio.sleep(client.random.random())
    hang_up(writer, reset=client.random.random() < 0.5)


async def drip(client: Client) -> None:
    await client.drip(raw_request("/v1/completions", b"{}"))


KINDS = (
    Kind("chat", 12, chat, BUSY),
    Kind("chat stream", 12, chat_stream, BUSY),
    Kind("chat n=3 logprobs", 4, chat_with_logprobs, BUSY),
    Kind("completion", 10, completion, BUSY),
    Kind("completion stream n=2 logprobs", 5, completion_stream, BUSY),
    Kind("echo", 3, echo, BUSY),
    Kind("four prompts", 3, many_prompts, BUSY),
    Kind("long prompt", 2, long_prompt, BUSY),
    Kind("truncated prompt", 2, truncated_prompt, BUSY),
    Kind("too long prompt", 2, too_long_prompt, REFUSED),
    Kind("too large body", 1, too_large_body, frozenset({413})),
    Kind("bad JSON", 4, bad_json, REFUSED),
    Kind("bad field", 6, bad_field, REFUSED),
    Kind("unknown model", 3, unknown_model, frozenset({404})),
    Kind("infilling", 3, infilling, REFUSED),
    Kind("tokenise", 4, tokens),
    Kind("models", 2, models),
    Kind("metrics", 3, metrics),
    Kind("other model", 8, other_model, UNLOADED),
    Kind("leaves a stream", 6, leave_stream),
    Kind("leaves before an answer", 5, leave_unread),
    Kind("half a body", 2, half_body),
    Kind("drips", 1, drip),
)


async def ask_every_length(server: Server, tally: Tally, salt: str) -> None:
    """Send prompts of all numbers of blocks that a step may compute, and have each told back.

    Libraries keep something for each number of rows that they have multiplied, for ever.
    salt: nothing of these prompts may be known with it.
    """
    client = Client(server, seed=0)
    async with client.http:
        for length in range(BLOCK_TOKENS, STEP_TOKENS + 1, BLOCK_TOKENS):
            for told in ({}, {"echo": True, "logprobs": 1}):
                prompt = [client.random.randint(1, 100) for _ in range(length)]
                body = client.completion_body(prompt=prompt, cache_salt=salt, max_tokens=2, **told)
                answer = await client.post("/v1/completions", body)
                tally.count("every length", answer.status_code, OK, answer.text)


async def ask_every_token(server: Server, tally: Tally, vocab_size: int) -> None:
    """Send every token of the vocabulary once.

    An embedding on a CPU is mapped from its file: a page of it becomes resident when one of its
    tokens is first sent, which the clients' words and samples would have gone on doing for an hour.
    """
    client = Client(server, seed=0)
    most = CONTEXT - 1  # beside the one token of an answer
    async with client.http:
        for first in range(0, vocab_size, most):
            prompt = list(range(first, min(first + most, vocab_size)))
            body = client.completion_body(prompt=prompt, max_tokens=1)
            answer = await client.post("/v1/completions", body)
            tally.count("every token", answer.status_code, OK, answer.text)


async def ask_little(server: Server, tally: Tally) -> None:
    """Ask each model for one token, which is one step."""
    client = Client(server, seed=0)
    async with client.http:
        for model in (MODEL, OTHER_MODEL):
            body = client.completion_body(num_words=1, max_tokens=1, model=model)
            answer = await client.post("/v1/completions", body)
            tally.count("little", answer.status_code, OK, answer.text)


async def ask(server: Server, seed: int, tally: Tally, until: asyncio.Event) -> None:
    """Send one request after another, of all kinds, until told to stop."""
    client = Client(server, seed)
    weights = [kind.weight for kind in KINDS]
    async with client.http:
        while not until.is_set():
            (kind,) = client.random.choices(KINDS, weights)
            try:
                answer = await kind.send(client)
            except (httpx.HTTPError, OSError, RuntimeError) as error:
                tally.count(kind.name, 599, kind.expected, repr(error))
                continue
            status = None if answer is None else answer.status_code
            tally.count(kind.name, status, kind.expected, "" if answer is None else answer.text)


class Administrator:
    """Unloads the other model and loads it again, all the time."""

    def __init__(self, server: Server, tally: Tally) -> None:
        self._tally = tally
        self._http = httpx.AsyncClient(
            base_url=f"http://{server.host}:{server.port}",
            headers={"authorization": f"Bearer {ADMIN_KEY}"},
            timeout=LIMIT_S,
        )

    async def work(self, rest_s: float, until: asyncio.Event) -> None:
        """Unload, rest, load, rest; leave the model served."""
        async with self._http:
            while not until.is_set():
                await self._tell("unload", "unloaded")
                await _sleep(rest_s, until)
                await self._tell("load", "serving")
                await _sleep(rest_s, until)

    async def _tell(self, action: str, state: str) -> None:
        """Ask for something, and wait until it is done."""
        answer = await self._http.post(f"/admin/models/{action}", json={"model": OTHER_MODEL})
        self._tally.count(action, answer.status_code, frozenset({202}), answer.text)
        deadline = time.monotonic() + RELOAD_LIMIT_S
        while await self._state() != state:
            if time.monotonic() > deadline:
                self._tally.count(action, 599, frozenset(), f"the model did not become {state}")
                return
            await asyncio.sleep(0.2)

    async def _state(self) -> str:
        listed = (await self._http.get("/admin/models")).json()["data"]
        (state,) = [one["state"] for one in listed if one["model"] == OTHER_MODEL]
        return str(state)


async def _sleep(seconds: float, until: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(until.wait(), seconds)
