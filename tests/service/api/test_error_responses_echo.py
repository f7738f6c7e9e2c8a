"""No error repeats much of what was sent, whatever is wrong with it and wherever it was sent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from service.api.error_responses import MAX_MESSAGE
from service.api.not_offered import not_offered
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

MOST = 200  # characters that are the client's
LONG = "Q" * 5000
NAMES = ["Q" * (59 + number % 4) + str(number) for number in range(60)]  # a person might write them
MANY = dict.fromkeys(NAMES, 1)
POSTS = [
    *("/v1/completions", "/v1/chat/completions", "/v1/fim/completions", "/infill", "/generate"),
    *("/generate_stream", "/", "/tokenize", "/detokenize", "/apply-template"),
    *("/v1/completions/render", "/v1/chat/completions/render", "/v1/responses"),
]
FIELDS = [
    *("model", "prompt", "messages", "suffix", "max_tokens", "stop", "logit_bias", "bad_words"),
    *("tools", "tool_choice", "response_format", "inputs", "parameters", "tokens", "content"),
    *("input_prefix", "input_suffix", "input_extra", "documents", "chat_template_kwargs", "user"),
    *("truncate_prompt_tokens", "temperature", "seed", "request_id", "stream_options", "priority"),
    *("input", "instructions", "reasoning", "text", "include", "metadata", "previous_response_id"),
]
VALUES: list[Any] = [
    LONG,
    [LONG] * 30,
    {LONG: LONG},
    [{LONG: LONG}] * 30,
    [{"role": LONG, "content": LONG}],
    [{"role": "tool", "name": LONG, "tool_call_id": LONG, "content": LONG}],
    [{"role": "user", "content": [{"type": LONG, LONG: LONG}]}],
    NAMES,
    MANY,
    {name: {name: MANY} for name in NAMES},
    [{"role": "user", "content": [{"type": name, **MANY} for name in NAMES]}],
]
ENOUGH = {
    "prompt": "a",
    "messages": [{"role": "user", "content": "a"}],
    "inputs": "a",
    "input": "a",
    "input_prefix": "",
    "input_suffix": "",
    "tokens": [5],
}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    tokenizer = gap_tokenizer()
    with (
        running_server(
            FakeEngine(says(tokenizer, "hi")),
            tokenizer,
            chat_template=PlainTemplate(tokenizer),
            infilling=gap_infilling(tokenizer),
        ) as running,
        httpx.Client(base_url=running.url, timeout=20) as made,
    ):
        yield made


def is_brief(response: httpx.Response) -> bool:
    """Whether an error repeats at most so much, in its body and headers; no other answer is one."""
    if response.status_code < 400:
        return True
    error = response.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert len(message) <= MAX_MESSAGE
    told = response.text + "".join(response.headers.values())
    return told.count("Q") <= MOST


@pytest.mark.parametrize("path", POSTS)
def test_no_field_is_repeated_at_length(client, path):
    for field in FIELDS:
        for value in VALUES:
            body = {"model": MODEL, **ENOUGH, field: value}
            assert is_brief(client.post(path, json=body)), (field, json.dumps(value)[:80])


@pytest.mark.parametrize("path", POSTS)
def test_many_unknown_fields_are_not_all_repeated(client, path):
    for names in (NAMES, NAMES[:3], NAMES[:31]):
        body = {**ENOUGH, **dict.fromkeys(names)}
        assert is_brief(client.post(path, json={"model": MODEL, **body}))
        assert is_brief(client.post(path, json=dict.fromkeys(names)))
        assert is_brief(client.post(path, json={**body, "model": "no such one"}))


def test_what_was_ignored_is_not_listed_beside_an_error(client):
    body = {"model": "no such one", "prompt": "a", **dict.fromkeys(NAMES[:31], 1)}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 404
    assert is_brief(response)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "content",
    [
        LONG,
        f'{{"{LONG}": 1, "{LONG}": 2}}',
        f'{{"model": {LONG}}}',
        f'"{LONG}"',
        f'{{"model": "{LONG}',
        f'{{"model": "\\ud800{LONG}"}}',
    ],
)
def test_no_body_is_repeated_at_length(client, path, content):
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code >= 400
    assert is_brief(response)


@pytest.mark.parametrize("path", [f"/{LONG}", f"/v1/{LONG}", f"/v1/models/{LONG}", f"/api/{LONG}"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PATCH"])
def test_neither_paths_nor_methods_nor_headers_are_repeated_at_length(client, path, method):
    assert is_brief(client.request(method, path))
    headers = dict.fromkeys(("x-request-id", "content-type", "content-encoding"), LONG)
    assert is_brief(client.request(method, "/v1/completions", headers=headers))


def test_a_path_of_slashes_is_looked_at_in_no_time():
    assert not_offered("/" * 100_000) is None
    assert not_offered("/v1/embeddings" + "/" * 100_000) is not None
