"""`openai` reads the server's streams however the network cuts them."""

from __future__ import annotations

import importlib
import json

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

# What the client itself is built on: `httpx2` since its third major.
httpx = importlib.import_module("httpx" if openai.__version__ < "3" else "httpx2")

CHAT, COMPLETIONS = "chat/completions", "completions"
NUM_TOKENS = 3


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def bodies(server):
    shared = {"model": server.model, "temperature": 0, "max_tokens": NUM_TOKENS, "stream": True}
    return {
        # Characters of two, three and four bytes, to be cut in two as well.
        CHAT: {
            **shared,
            "messages": [{"role": "user", "content": "Repeat: ‘né 🙂’"}],
            "stream_options": {"include_usage": True},
        },
        COMPLETIONS: {**shared, "prompt": "né – 🙂", "echo": True},
    }


def record(client: openai.OpenAI, path: str, body: dict[str, object]) -> bytes:
    """Take a stream's bytes from the server, as they come."""
    endpoint = client.chat.completions if path == CHAT else client.completions
    with endpoint.with_streaming_response.create(**body) as response:
        return response.read()


def read(client: openai.OpenAI, path: str, pieces: list[bytes]) -> list[dict]:
    """Read a stream's bytes, cut in pieces, as the client reads a response's."""
    response = httpx.Response(200, content=iter(pieces), request=httpx.Request("POST", "http://x"))
    cast_to = ChatCompletionChunk if path == CHAT else Completion
    stream = openai.Stream(cast_to=cast_to, response=response, client=client)
    return [chunk.model_dump(exclude_unset=True) for chunk in stream]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_stream_cut_at_every_byte_is_read_the_same(client, bodies, path):
    body = bodies[path]
    recorded = record(client, path, body)
    events = [line for line in recorded.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1] == b"data: [DONE]"
    expected = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    assert "🙂".encode() in recorded or path == CHAT

    assert read(client, path, [recorded]) == expected
    assert read(client, path, [bytes([byte]) for byte in recorded]) == expected
    for cut in range(1, len(recorded)):
        assert read(client, path, [recorded[:cut], recorded[cut:]]) == expected, recorded[:cut]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_stream_was_kept_alive_by_comments_of_one_line(client, bodies, path):
    """The server of these tests is set to do so after a few milliseconds of silence."""
    recorded = record(client, path, {**bodies[path], "max_tokens": 40})
    assert b": keep-alive\n" in recorded
    assert b": keep-alive\n\n" not in recorded  # what some clients take for an empty event
    assert not any(line.startswith((b"id:", b"retry:")) for line in recorded.split(b"\n"))
