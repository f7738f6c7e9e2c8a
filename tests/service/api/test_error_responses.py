"""Errors over HTTP: one shape, the right status, the official client's own exception for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2 as httpx
import openai
import pytest
import structlog.testing

from engine.errors import (
    DeadlineExceededError,
    EngineDeadError,
    NonFiniteLogitsError,
    QueueFullError,
)
from service.api.error_responses import error_form
from tests.service.fakes import MODEL, FakeEngine, RunningServer, running_server, says

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

USER = [{"role": "user", "content": "hi"}]
BODY = {"model": MODEL, "prompt": "hi"}


@pytest.fixture(scope="module")
def server(tiny_tokenizer: PreTrainedTokenizerFast) -> Iterator[RunningServer]:
    with running_server(FakeEngine(says(tiny_tokenizer, "yes")), tiny_tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


def error_of(response: httpx.Response) -> dict[str, object]:
    (name,) = response.json()
    assert name == "error"
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_wrong_value_is_a_bad_request_naming_the_field(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="hi", temperature=3)
    assert caught.value.status_code == 400
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == "temperature"
    assert "2" in caught.value.message


def test_unsupported_field_is_refused_by_name(client):
    with pytest.raises(openai.BadRequestError, match="modalities") as caught:
        client.chat.completions.create(model=MODEL, messages=USER, modalities=["audio"])
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param == "modalities"


def test_unknown_model_is_not_found_and_the_served_one_is_named(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="hi")
    assert caught.value.code == "model_not_found"
    assert MODEL in caught.value.message


def test_too_long_a_prompt_tells_both_numbers(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=[5] * 256)
    assert caught.value.code == "context_length_exceeded"
    assert "256" in caught.value.message


def test_too_long_an_answer_tells_what_would_fit(client):
    with pytest.raises(openai.BadRequestError, match="at most 246") as caught:
        client.completions.create(model=MODEL, prompt=[5] * 10, max_tokens=247)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "max_tokens"


def test_longest_prompt_and_answer_fit(client):
    client.completions.create(model=MODEL, prompt=[5] * 255, max_tokens=1)
    client.completions.create(model=MODEL, prompt=[5] * 10, max_tokens=246)


def test_token_outside_the_vocabulary_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError, match="511"):
        client.completions.create(model=MODEL, prompt=[512])


def test_later_prompt_that_is_refused_lets_nothing_run(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer) as server:
        with pytest.raises(openai.BadRequestError):
            server.client().completions.create(model=MODEL, prompt=[[5], [512]])
        assert engine.submitted == []


def test_a_deadline_that_passed_is_not_asked_for_again(tiny_tokenizer):
    """The official client repeats what ends with 408, unless it is told not to."""
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    engine.fails_after, engine.failure = 1, DeadlineExceededError("it took longer than 2 s")
    with (
        running_server(engine, tiny_tokenizer) as server,
        server.client().with_options(max_retries=2) as client,
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model=MODEL, prompt="hi", extra_body={"timeout": 2})
        assert caught.value.status_code == 408
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert len(engine.submitted) == 1


def test_unknown_path_and_method_have_the_same_shape(server):
    response = httpx.get(f"{server.url}/v1/nothing")
    assert response.status_code == 404
    error_of(response)
    response = httpx.get(f"{server.url}/v1/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "POST" in str(error_of(response)["message"])


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json", "content-encoding": "gzip"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": ""},
    ],
)
def test_body_that_is_not_plain_json_is_refused(server, headers):
    response = httpx.post(f"{server.url}/v1/completions", content=b"{}", headers=headers)
    assert response.status_code == 415
    error_of(response)


@pytest.mark.parametrize("content_type", ["application/json", 'Application/JSON; charset="UTF-8"'])
def test_json_is_taken_however_it_is_spelt(server, content_type):
    body = b'{"model": "%s", "prompt": "hi"}' % MODEL.encode()
    headers = {"content-type": content_type}
    assert httpx.post(f"{server.url}/v1/completions", content=body, headers=headers).is_success


def test_every_response_has_a_request_id(server):
    for path in ("/v1/models", "/nothing", "/health"):
        assert len(httpx.get(server.url + path).headers["x-request-id"]) == 32


def test_sane_request_id_comes_back(server):
    response = httpx.get(f"{server.url}/health", headers={"x-request-id": "run-7:a/b"})
    assert response.headers["x-request-id"] == "run-7:a/b"


@pytest.mark.parametrize("given", ["x" * 129, "a b", "é", ""])
def test_other_request_ids_are_replaced(server, given):
    headers = {"x-request-id": given.encode("latin-1")}
    response = httpx.get(f"{server.url}/health", headers=headers)
    assert response.headers["x-request-id"] != given


def test_dead_engine_is_unavailable(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "yes"), fails_after=0)
    with running_server(engine, tiny_tokenizer) as server:
        response = httpx.post(f"{server.url}/v1/completions", json=BODY)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert error_of(response)["code"] == "engine_dead"
        engine.is_alive = False
        with pytest.raises(openai.InternalServerError) as caught:
            server.client().completions.create(model=MODEL, prompt="hi")
        assert caught.value.status_code == 503


def test_error_in_a_stream_is_told_and_done_still_comes(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "yes indeed"), fails_after=2)
    with running_server(engine, tiny_tokenizer) as server:
        with pytest.raises(openai.APIError, match="stopped"):
            list(server.client().completions.create(model=MODEL, prompt="hi", stream=True))
        body = httpx.post(f"{server.url}/v1/completions", json={**BODY, "stream": True}).text
    *_, error, done, rest = body.split("\n\n")
    assert error.startswith('data: {"error":{"message":"the engine has stopped"')
    assert (done, rest) == ("data: [DONE]", "")


def test_first_failure_among_choices_is_told_and_stops_the_others(tiny_tokenizer):
    engine = FakeEngine(
        says(tiny_tokenizer, "yes " * 20),
        fails_after=2,
        failure=NonFiniteLogitsError("the model gave NaN"),
    )
    with running_server(engine, tiny_tokenizer) as server:
        for stream in (False, True):
            response = httpx.post(
                f"{server.url}/v1/completions", json={**BODY, "n": 3, "stream": stream}
            )
            assert "the model gave NaN" in response.text
        assert not engine.running


@pytest.mark.parametrize("stream", [False, True])
def test_fault_of_our_own_tells_nothing_of_itself(tiny_tokenizer, stream):
    engine = FakeEngine(
        says(tiny_tokenizer, "yes"), fails_after=1, failure=ZeroDivisionError("/secret/path")
    )
    with (
        structlog.testing.capture_logs() as logged,
        running_server(engine, tiny_tokenizer) as server,
    ):
        response = httpx.post(f"{server.url}/v1/completions", json={**BODY, "stream": stream})
    (line,) = [line for line in logged if line["event"] == "request_failed"]
    assert line["request_id"] == response.headers["x-request-id"]
    assert response.status_code == (200 if stream else 500)
    assert '"server_error"' in response.text
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert response.text.endswith("data: [DONE]\n\n") is stream


def test_loading_server_says_so(tiny_tokenizer):
    with running_server(None, tiny_tokenizer) as server:
        response = httpx.post(f"{server.url}/v1/completions", json=BODY)
        assert response.status_code == 503
        assert "retry-after" in response.headers
        assert "loading" in str(error_of(response)["message"])


def test_overload_is_the_clients_fault_of_too_many_and_says_when_to_come_again(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    engine.refusal = QueueFullError("128 sequences wait, at most 128 may", retry_after_s=2.3)
    with running_server(engine, tiny_tokenizer) as server:
        for stream in (False, True):
            response = httpx.post(f"{server.url}/v1/completions", json={**BODY, "stream": stream})
            assert response.status_code == 429
            assert response.headers["retry-after"] == "3"
            assert error_of(response)["code"] == "queue_full"
            with pytest.raises(openai.RateLimitError):
                server.client().completions.create(**BODY, stream=stream)


def test_variant_that_cannot_chat_says_so_and_completes(tiny_tokenizer):
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    refusal = "owner/name is a base model; use /v1/completions"
    with running_server(engine, tiny_tokenizer, chat_refusal=refusal) as server:
        client = server.client()
        with pytest.raises(openai.BadRequestError, match="use /v1/completions") as caught:
            client.chat.completions.create(model=MODEL, messages=USER)
        assert caught.value.code == "chat_not_supported"
        assert client.completions.create(model=MODEL, prompt="hi").choices[0].text == "yes"


class EngineLostError(EngineDeadError):
    """A kind that the table does not know."""


def test_error_is_told_as_the_nearest_class_above_it():
    assert error_form(EngineLostError("gone")).status == 503
    assert error_form(KeyError("gone")).status == 500
