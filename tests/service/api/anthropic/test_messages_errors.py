"""Errors of the Messages API: one shape whatever fails and wherever, and no other than that."""

from __future__ import annotations

import json

import httpx2 as httpx
import pytest

from engine.errors import (
    DeadlineExceededError,
    EngineDeadError,
    NonFiniteLogitsError,
    QueueFullError,
)
from engine.transport.backlog import Backlog, QueueLimits
from service.api.error_models import AnthropicError
from tests.service.api.anthropic.conftest import events_of
from tests.service.fakes import ByteTokenizer, FakeEngine, running_server, says

PATHS = ["/v1/messages", "/messages", "/v1/messages/count_tokens", "/messages/count_tokens"]
HI = {"role": "user", "content": "hi"}
BODY = {"messages": [HI], "max_tokens": 4}


def kind_of(response: httpx.Response) -> tuple[int, str]:
    """The status and Anthropic's word for it, in a body that is as its model says."""
    error = AnthropicError.model_validate(response.json())
    assert error.request_id == response.headers["request-id"] == response.headers["x-request-id"]
    return response.status_code, error.error.type


def failing(failure: Exception, after: int = 0) -> FakeEngine:
    engine = FakeEngine(says(ByteTokenizer(), "yes"))
    engine.fails_after, engine.failure = after, failure
    return engine


@pytest.mark.parametrize("path", PATHS)
def test_what_is_wrong_with_a_request_is_told_in_anthropics_words(agent, path):
    post = agent.http.post
    assert kind_of(post(path, json={})) == (400, "invalid_request_error")
    assert kind_of(post(path, json={"messages": 3})) == (400, "invalid_request_error")
    assert kind_of(post(path, json={**BODY, "model": "other"})) == (404, "not_found_error")
    assert kind_of(agent.http.get(path)) == (405, "invalid_request_error")
    json_type = {"content-type": "application/json"}
    assert kind_of(post(path, content=b"{", headers=json_type)) == (400, "invalid_request_error")
    plain = post(path, content=b"{}", headers={"content-type": "text/plain"})
    assert kind_of(plain) == (415, "invalid_request_error")
    large = post(path, content=b" " * (4 * 1024 * 1024 + 1), headers=json_type)
    assert kind_of(large) == (413, "request_too_large")
    page = post(path, json=BODY, headers={"origin": "https://elsewhere.example"})
    assert kind_of(page) == (403, "permission_error")


@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_key_is_told_before_anything_is_read(path):
    tokenizer = ByteTokenizer()
    with running_server(FakeEngine(says(tokenizer, "yes")), tokenizer, key="right") as server:
        url = server.url + path
        wrong = httpx.post(url, json=BODY, headers={"x-api-key": "wrong"})
        assert kind_of(wrong) == (401, "authentication_error")
        assert kind_of(httpx.post(url, json=BODY)) == (401, "authentication_error")
        assert httpx.post(url, json=BODY, headers={"x-api-key": "right"}).status_code == 200
        bearer = {"authorization": "Bearer right"}
        assert httpx.post(url, json=BODY, headers=bearer).status_code == 200


@pytest.mark.parametrize(
    ("failure", "found"),
    [
        (EngineDeadError("gone"), (503, "overloaded_error")),
        (NonFiniteLogitsError("NaN"), (500, "api_error")),
        (DeadlineExceededError("late"), (408, "timeout_error")),
        (ValueError("secret"), (500, "api_error")),
    ],
    ids=lambda one: type(one).__name__,
)
def test_failures_of_the_engine_whole_and_streamed(failure, found):
    with running_server(failing(failure), ByteTokenizer()) as server:
        response = httpx.post(f"{server.url}/v1/messages", json=BODY)
        assert kind_of(response) == found
        assert "secret" not in response.text
        streamed = httpx.post(f"{server.url}/v1/messages", json={**BODY, "stream": True})
        assert streamed.status_code == 200
        (event,) = events_of(streamed.text)
        error = AnthropicError.model_validate(event)
        assert error.error.type == found[1]
        assert error.request_id == streamed.headers["request-id"]


def test_a_stream_that_fails_on_its_way_ends_with_the_error():
    with running_server(failing(EngineDeadError("gone"), after=2), ByteTokenizer()) as server:
        text = httpx.post(f"{server.url}/v1/messages", json={**BODY, "stream": True}).text
    kinds = [event["type"] for event in events_of(text)]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "error"
    assert kinds.count("content_block_delta") == 2


def test_a_server_that_loads_is_overloaded():
    with running_server(None, ByteTokenizer()) as server:
        for path in PATHS:
            response = httpx.post(server.url + path, json=BODY)
            assert kind_of(response) == (503, "overloaded_error")
            assert response.headers["retry-after"]


def test_a_full_queue_is_told_with_the_requests_own_id():
    engine = FakeEngine(says(ByteTokenizer(), "yes"))
    engine.refusal = QueueFullError("the queue is full", retry_after_s=2)
    with running_server(engine, ByteTokenizer()) as server:
        response = httpx.post(f"{server.url}/v1/messages", json=BODY)
    assert kind_of(response) == (429, "rate_limit_error")
    assert response.headers["retry-after"] == "2"


def test_a_request_that_is_refused_at_its_head_is_told_the_same(monkeypatch):
    engine = FakeEngine(says(ByteTokenizer(), "yes"))
    engine.backlog = Backlog(QueueLimits(max_queued_seqs=1))

    def refuse(num_ahead: int = 0) -> None:
        raise QueueFullError("the queue is full", retry_after_s=2)

    monkeypatch.setattr(engine, "require_room", refuse)
    with running_server(engine, ByteTokenizer()) as server:
        for number in range(2):
            response = httpx.post(
                f"{server.url}/v1/messages",
                content=json.dumps(BODY),
                headers={"content-type": "application/json", "x-request-id": f"mine-{number}"},
            )
            assert kind_of(response) == (429, "rate_limit_error")
            assert response.headers.get_list("request-id") == [f"mine-{number}"]
            assert response.headers.get_list("x-request-id") == [f"mine-{number}"]


def test_a_dialogue_that_is_too_long_is_told_in_the_words_that_agents_know(agent):
    long = {"role": "user", "content": "x" * agent.engine.max_model_len}
    response = agent.post(messages=[long])
    assert kind_of(response) == (400, "invalid_request_error")
    message = response.json()["error"]["message"]
    assert message.startswith("prompt is too long: This model's maximum context length is 4096")
