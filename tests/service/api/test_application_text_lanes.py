"""Every endpoint encodes long texts in their own lane, so that short ones pass them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from service.serving.text_lanes import MAX_SHORT
from service.text import encoding
from tests.service.fakes import (
    MODEL,
    FakeEngine,
    PlainTemplate,
    gap_infilling,
    gap_tokenizer,
    running_server,
    says,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.fakes import RunningServer

seen_by: list[str] = []  # names of the threads that encoded or rendered


class Template(PlainTemplate):
    """Remembers which threads rendered."""

    def render_text(self, messages: Any, options: Any = None, tools: Any = ()) -> str:
        seen_by.append(threading.current_thread().name)
        return "short"

    def render(self, messages: Any, options: Any = None) -> list[int]:
        return [0, len(self.render_text(messages))]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    tokenizer = gap_tokenizer()
    with running_server(
        FakeEngine(says(tokenizer, "hi"), max_model_len=MAX_SHORT * 2),
        tokenizer,
        chat_template=Template(tokenizer),
        infilling=gap_infilling(tokenizer),
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def encodes_nothing(monkeypatch):
    def encode(backend: object, text: str, *_: object) -> list[int]:
        seen_by.append(threading.current_thread().name)
        return [5]

    monkeypatch.setattr(encoding, "encode_in_time", encode)
    seen_by.clear()


def turns(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


BODIES: dict[str, tuple[str, Any]] = {
    "completions": ("/v1/completions", lambda text: {"prompt": text}),
    "a gap of completions": ("/v1/completions", lambda text: {"prompt": "a", "suffix": text}),
    "chat": ("/v1/chat/completions", lambda text: {"messages": turns(text)}),
    "responses": ("/v1/responses", lambda text: {"input": text}),
    "rendered chat": ("/v1/chat/completions/render", lambda text: {"messages": turns(text)}),
    "rendered completions": ("/v1/completions/render", lambda text: {"prompt": text}),
    "Mistral's gap": ("/v1/fim/completions", lambda text: {"prompt": text}),
    "llama.cpp's gap": ("/infill", lambda text: {"input_prefix": text, "input_suffix": ""}),
    "llama.cpp's files": (
        "/infill",
        lambda text: {"input_prefix": "", "input_suffix": "", "input_extra": [{"text": text}]},
    ),
    "TGI": ("/generate", lambda text: {"inputs": text}),
    "tokens of a prompt": ("/tokenize", lambda text: {"prompt": text}),
    "tokens of content": ("/tokenize", lambda text: {"content": text}),
    "tokens of a dialogue": ("/tokenize", lambda text: {"messages": turns(text)}),
    "template": ("/apply-template", lambda text: {"messages": turns(text)}),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize(("size", "lane"), [(4, "short-text"), (MAX_SHORT + 1, "long-text")])
def test_texts_are_encoded_in_the_lane_of_their_length(server, kind, size, lane):
    path, body_of = BODIES[kind]
    response = httpx.post(server.url + path, json={"model": MODEL, **body_of("x" * size)})
    assert response.status_code == 200, response.text
    assert seen_by
    assert all(name.startswith(lane) for name in seen_by)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/completions/render"])
def test_bad_words_are_encoded_beside_the_event_loop(server, path):
    body = {"model": MODEL, "prompt": [5], "bad_words": ["no"]}
    response = httpx.post(server.url + path, json=body)
    assert response.status_code == 200
    assert seen_by
    assert all(name.startswith("short-text") for name in seen_by)
