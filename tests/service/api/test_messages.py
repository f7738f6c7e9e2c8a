"""Messages as real clients send them, or send back what they were sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2 as httpx
import pytest

from tests.service.fakes import LIMITS, MODEL, FakeEngine, running_server, says

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USER = {"role": "user", "content": "hi"}
# What the official client's `model_dump()` makes of an answer.
DUMPED = {
    "role": "assistant",
    "content": "yes",
    "refusal": None,
    "annotations": None,
    "audio": None,
    "function_call": None,
    "tool_calls": None,
    "name": None,
    "reasoning_content": None,
}


@pytest.fixture(scope="module")
def ask(tiny_tokenizer) -> Iterator[Callable[..., tuple[httpx.Response, str]]]:
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    with running_server(engine, tiny_tokenizer) as server:

        def asked(*messages: object, **fields: object) -> tuple[httpx.Response, str]:
            body = {"model": MODEL, "messages": list(messages), **fields}
            response = httpx.post(f"{server.url}/v1/chat/completions", json=body)
            return response, tiny_tokenizer.decode(engine.submitted[-1][0][1:])

        asked(USER)
        yield asked


def test_what_the_official_client_dumps_may_be_sent_back(ask):
    response, text = ask(USER, DUMPED, USER)
    assert response.status_code == 200
    assert "x-ignored-params" not in response.headers
    assert text == "user: hi\nassistant: yes\nuser: hi\n"


@pytest.mark.parametrize("content", ["absent", None, "", []])
def test_an_assistants_content_may_be_empty_in_any_spelling(ask, content):
    message = (
        {"role": "assistant"}
        if content == "absent"
        else {
            "role": "assistant",
            "content": content,
        }
    )
    response, text = ask(USER, message, USER)
    assert response.status_code == 200
    assert text == "user: hi\nassistant: \nuser: hi\n"


@pytest.mark.parametrize("role", ["system", "developer", "user"])
@pytest.mark.parametrize("message", [{}, {"content": None}])
def test_others_must_have_said_something(ask, role, message):
    response, _ = ask({"role": role, **message})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages.0")


def test_unknown_keys_are_named_by_their_path_once(ask):
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    response, text = ask({"role": "user", "content": [part, part], "mood": "good"}, USER)
    assert response.status_code == 200
    assert response.headers["x-ignored-params"] == (
        "messages[].mood, messages[].content[].cache_control"
    )
    assert text.startswith("user: a\na\n")


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (
            {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "f"}}]},
            "tool_calls",
        ),
        ({"role": "user", "content": "x", "audio": {"id": "1"}}, "audio"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "content"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "content"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_place(ask, message, place):
    response, _ = ask(message)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"].startswith("messages.0." + place)


CALL = {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({**USER, "tool_calls": [{"function": CALL}]}, "tool_calls, which only role assistant"),
        ({**USER, "function_call": CALL}, "function_call, which only role assistant"),
        ({**USER, "tool_call_id": "1"}, "tool_call_id, which only role tool"),
        (
            {"role": "assistant", "function_call": CALL, "tool_calls": [{"function": CALL}]},
            "mean the same; give one",
        ),
        ({"role": "function", "content": "x"}, "a function's result without its name"),
        (
            {"role": "assistant", "content": "x", "reasoning": "hm", "reasoning_content": "hmm"},
            "reasoning_content and reasoning mean the same and differ",
        ),
        (
            {"role": "robot", "content": "x"},
            "'system', 'developer', 'user', 'assistant', 'tool' or",
        ),
    ],
)
def test_what_belongs_to_another_role_is_refused(ask, message, told):
    response, _ = ask(message)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].startswith("messages.0")
    assert told in error["message"]


def test_refusals_and_annotations_of_earlier_answers_are_named(ask):
    response, _ = ask(USER, {**DUMPED, "refusal": "no", "annotations": [{"type": "x"}]}, USER)
    assert response.headers["x-ignored-params"] == "messages[].refusal, messages[].annotations"


def test_choosing_among_no_tools_has_no_effect(ask):
    response, _ = ask(USER, tools=[], tool_choice="auto", parallel_tool_calls=False)
    assert response.status_code == 200
    assert "x-ignored-params" not in response.headers


def test_parts_are_counted_before_they_are_looked_at(ask):
    """Else each of a million wrong ones would be described."""
    response, _ = ask({"role": "user", "content": [1] * (LIMITS.max_messages + 1)})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages.0.content")
    assert error["message"] == "messages.0.content: has 2049 parts; give at most 2048"


def test_of_parts_that_are_wrong_the_first_is_described(ask):
    response, _ = ask({"role": "user", "content": [{"type": "text"}] * 5})
    message = response.json()["error"]["message"]
    assert "content.0.text" in message
    assert "content.1" not in message
