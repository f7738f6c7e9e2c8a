"""A stream may be cut into pieces at any byte, with keep-alives anywhere: official clients read it.

The bytes are those of a real server; they reach the official client's own decoder in two pieces,
cut at each byte in turn.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import openai
import pytest
from openai._streaming import SSEDecoder

from service.api.frames import KEEP_ALIVE
from tests.service.fakes import MODEL, FakeEngine, running_server, says

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = "Grüße, 世界 🙂"
ASKED = {
    "model": MODEL,
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 99,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {**ASKED, "prompt": "hi"},
    "/v1/chat/completions": {**ASKED, "messages": [{"role": "user", "content": "hi"}]},
}


@pytest.fixture(scope="module")
def streams(tiny_tokenizer) -> dict[str, bytes]:
    """The bytes of a stream of each endpoint."""
    with running_server(FakeEngine(says(tiny_tokenizer, TEXT)), tiny_tokenizer) as server:
        return {
            path: httpx.post(server.url + path, json=body).content for path, body in BODIES.items()
        }


def decode(pieces: list[bytes]) -> list[str]:
    return [event.data for event in SSEDecoder().iter_bytes(iter(pieces))]


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_cut_at_any_byte_is_read_alike(streams, path):
    stream = streams[path]
    whole = decode([stream])
    assert whole[-1] == "[DONE]"
    assert all(json.loads(data)["object"] for data in whole[:-1])
    assert len(whole) > 10
    for cut in range(len(stream) + 1):
        assert decode([stream[:cut], stream[cut:]]) == whole
    assert decode([stream[i : i + 1] for i in range(len(stream))]) == whole


@pytest.mark.parametrize("path", BODIES)
def test_keep_alives_before_any_event_and_cut_anywhere_change_nothing(streams, path):
    stream = streams[path]
    whole = decode([stream])
    with_comments = b"".join(
        KEEP_ALIVE * 2 + event + b"\n\n" for event in stream.removesuffix(b"\n\n").split(b"\n\n")
    )
    for cut in range(len(with_comments) + 1):
        assert decode([with_comments[:cut], with_comments[cut:]]) == whole


def test_a_keep_alive_is_one_line_without_an_empty_one():
    assert KEEP_ALIVE == b": keep-alive\n"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("step", [1, 7, 64])
def test_the_official_client_reads_a_stream_that_comes_in_pieces(streams, path, step):
    """Through the client itself, with a comment before each event."""
    with_comments = streams[path].replace(b"data: ", KEEP_ALIVE + b"data: ")

    def answer(request: object) -> httpx.Response:
        pieces = (with_comments[i : i + step] for i in range(0, len(with_comments), step))
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=pieces)

    transport = openai.DefaultHttpxClient(transport=httpx.MockTransport(answer))
    with openai.OpenAI(base_url="http://x/v1", api_key="none", http_client=transport) as client:
        text = "".join(read(client, path))
    assert text == TEXT


def read(client: openai.OpenAI, path: str) -> Iterator[str]:
    body = BODIES[path]
    if path == "/v1/completions":
        for chunk in client.completions.create(**body):
            yield from (choice.text for choice in chunk.choices)
    else:
        for part in client.chat.completions.create(**body):
            yield from (choice.delta.content or "" for choice in part.choices)
