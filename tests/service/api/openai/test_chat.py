"""Chat over HTTP, as the official client sees it."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.service.fakes import MODEL, Defaults, FakeEngine, RunningServer, running_server, says

if TYPE_CHECKING:
    from collections.abc import Iterator

    import openai
    from transformers import PreTrainedTokenizerFast

TEXT = "Grüße, 世界! 👩‍👩‍👧 done"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def engine(tiny_tokenizer: PreTrainedTokenizerFast) -> FakeEngine:
    return FakeEngine(says(tiny_tokenizer, TEXT), max_model_len=4096)


@pytest.fixture(scope="module")
def server(engine: FakeEngine, tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[RunningServer]:
    with running_server(engine, tiny_tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


def test_whole_answer_has_text_reason_and_usage(client, engine):
    answer = client.chat.completions.create(model=MODEL, messages=USER)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.system_fingerprint == "fp_0123456789ab"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    prompt, _ = engine.submitted[-1]
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(engine.script(prompt, None)) + 1  # and the end
    assert answer.usage.total_tokens == len(prompt) + answer.usage.completion_tokens


def test_answer_may_be_sent_back_as_the_client_has_it(client, engine, tiny_tokenizer):
    message = client.chat.completions.create(model=MODEL, messages=USER).choices[0].message
    client.chat.completions.create(model=MODEL, messages=[*USER, message, *USER])
    rendered = tiny_tokenizer.decode(engine.submitted[-1][0])
    assert TEXT in rendered


def test_stream_begins_with_the_role_and_ends_with_a_reason(client):
    chunks = list(client.chat.completions.create(model=MODEL, messages=USER, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_no_chunk_holds_half_a_character(client):
    for chunk in client.chat.completions.create(model=MODEL, messages=USER, stream=True):
        assert "\ufffd" not in (chunk.choices[0].delta.content or "")


def test_usage_comes_in_a_chunk_of_its_own(client):
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    *others, last = chunks
    assert last.choices == []
    whole = client.chat.completions.create(model=MODEL, messages=USER).usage
    assert last.usage == whole
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in others)


def test_stream_ends_with_done_on_the_wire(server):
    body = {"model": MODEL, "messages": USER, "stream": True}
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.read().endswith(b"\n\ndata: [DONE]\n\n")


def test_choices_of_a_stream_interleave_by_index(client):
    chunks = client.chat.completions.create(model=MODEL, messages=USER, stream=True, n=3)
    texts, roles = ["", "", ""], []
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        roles += [choice.index] if choice.delta.role else []
    assert texts == [TEXT] * 3
    assert sorted(roles) == [0, 1, 2]


def test_choice_i_takes_seed_plus_i(client, engine):
    before = len(engine.submitted)
    client.chat.completions.create(model=MODEL, messages=USER, n=3, seed=2**63 - 2)
    seeds = [params.seed for _, params in engine.submitted[before:]]
    assert seeds == [2**63 - 2, 2**63 - 1, 0]


def test_without_a_seed_every_choice_takes_a_fresh_one(client, engine):
    client.chat.completions.create(model=MODEL, messages=USER, n=2)
    assert [params.seed for _, params in engine.submitted[-2:]] == [None, None]


def test_answer_may_take_what_is_left_of_the_context(client, engine):
    client.chat.completions.create(model=MODEL, messages=USER)
    prompt, params = engine.submitted[-1]
    assert params.max_tokens == engine.max_model_len - len(prompt)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_answer_is_cut_at_the_asked_length(client, name):
    answer = client.chat.completions.create(model=MODEL, messages=USER, **{name: 3})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_text_parts_of_a_message_are_joined(client, engine, tiny_tokenizer):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert "one\ntwo" in tiny_tokenizer.decode(engine.submitted[-1][0])


def test_answer_tells_where_it_came_from(client):
    answer = client.chat.completions.with_raw_response.create(model=MODEL, messages=USER)
    assert answer.headers["x-model-revision"] == "0123abc"
    assert answer.headers["x-quantization"] == "gptq 4-bit group 32"
    assert answer.headers["x-kernel"] == "reference"


def test_variants_settings_apply_where_the_request_is_silent(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "x"))
    defaults = Defaults(0.7, 40, 0.95)
    with running_server(engine, tiny_tokenizer, defaults=defaults) as server:
        client = server.client()
        client.chat.completions.create(model=MODEL, messages=USER)
        client.chat.completions.create(
            model=MODEL, messages=USER, temperature=0, top_p=1, extra_body={"top_k": -1}
        )
    (_, silent), (_, explicit) = engine.submitted
    assert (silent.temperature, silent.top_k, silent.top_p) == (0.7, 40, 0.95)
    assert (explicit.temperature, explicit.top_k, explicit.top_p) == (0, None, 1)


async def _read_with_the_async_client(server: RunningServer) -> tuple[str, str]:
    async with server.async_client() as client:
        whole = await client.chat.completions.create(model=MODEL, messages=USER)
        stream = await client.chat.completions.create(model=MODEL, messages=USER, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    return whole.choices[0].message.content or "", "".join(pieces)


def test_async_client_reads_the_same(server):
    import asyncio

    assert asyncio.run(_read_with_the_async_client(server)) == (TEXT, TEXT)
