"""Calls and their results as clients send them back, up to what the variant's template writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest
from pydantic import ValidationError

from service.api.tool_calls import MessageCall, calls_of
from service.text.templates import ChatTemplate
from service.tools.calls import ToolCall
from tests.service.fakes import LIMITS, MODEL, FakeEngine, running_server, says

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ m.name }}={{ m.content }}\n{% else %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls %}({{ c.function.name }} {{ c.function.arguments | tojson }})"
    "{% endfor %}{{ '\n' }}{% endif %}{% endfor %}assistant:"
)
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def ask(tiny_tokenizer) -> Iterator[Callable[..., tuple[httpx.Response, str]]]:
    """Ask a server whose template writes calls; see what the engine was given."""
    engine = FakeEngine(says(tiny_tokenizer, "yes"))
    template = ChatTemplate(tiny_tokenizer, name="calling", source=SOURCE)
    with running_server(engine, tiny_tokenizer, chat_template=template) as server:

        def asked(*messages: object) -> tuple[httpx.Response, str]:
            body = {"model": MODEL, "messages": [USER, *messages]}
            response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
            return response, tiny_tokenizer.decode(engine.submitted[-1][0][1:])

        asked(USER)
        yield asked
    template.close()


def function(name: str, arguments: object = "{}", **fields: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **fields}


def called(*calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": list(calls), **fields}


def result(content: object, **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **fields}


def rendered(ask, *messages: object) -> str:
    response, text = ask(*messages)
    assert response.status_code == 200, response.text
    assert "x-ignored-params" not in response.headers
    begin, end = "user:hi\n", "assistant:"
    assert text.startswith(begin)
    assert text.endswith(end)
    return text[len(begin) : -len(end)]


def refused(ask, *messages: object) -> dict[str, Any]:
    response, _ = ask(*messages)
    assert response.status_code == 400, response.text
    return response.json()["error"]


@pytest.mark.parametrize("content", ["absent", None, "", []])
def test_what_the_official_client_sends_back_reaches_the_template(ask, content):
    """As its `model_dump()` writes an answer that calls."""
    said = {} if content == "absent" else {"content": content}
    message = {
        "role": "assistant",
        **said,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [function("f", '{"a": 1}', id="c1", type="function")],
    }
    assert rendered(ask, message, result("wet", tool_call_id="c1")) == (
        'assistant:(f {"a": 1})\nf=wet\n'
    )


def test_calls_collected_from_a_stream_stand_in_their_order(ask):
    calls = [
        function("g", "", index=1, id="c2", type="function"),
        function("f", "", index=0, id="c1", type=None),
    ]
    sent = [result("G", tool_call_id="c2"), result("F", tool_call_id="c1")]
    assert rendered(ask, called(*calls, content=None), *sent) == (
        "assistant:(f {})(g {})\nf=F\ng=G\n"
    )


@pytest.mark.parametrize("arguments", ["", None, "{}", {}])
def test_no_arguments_have_many_spellings(ask, arguments):
    assert rendered(ask, called(function("f", arguments, id="c1"))) == "assistant:(f {})\n"


def test_arguments_may_be_an_object(ask):
    call = function("f", {"é": [1, {"b": None}]}, id="c1")
    assert rendered(ask, called(call)) == 'assistant:(f {"é": [1, {"b": null}]})\n'


def test_the_older_spelling_is_taken(ask):
    message = {"role": "assistant", "content": None, "function_call": {"name": "f"}}
    answer = {"role": "function", "name": "f", "content": "wet"}
    assert rendered(ask, message, answer) == "assistant:(f {})\nf=wet\n"


def test_results_without_ids_belong_to_calls_by_name_or_order(ask):
    calls = called(function("f"), function("g"), content="")
    by_name = [result("G", name="g"), result("F", name="f")]
    by_order = [result("F"), result("G", tool_call_id="")]
    for sent in (by_name, by_order):
        assert rendered(ask, calls, *sent) == "assistant:(f {})(g {})\nf=F\ng=G\n"


def test_results_may_be_parts_or_nothing(ask):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    calls = called(function("f", id="1"), function("f", id="2"))
    sent = [result(parts, tool_call_id="1"), result(None, tool_call_id="2")]
    assert rendered(ask, calls, *sent) == "assistant:(f {})(f {})\nf=a\nb\nf=\n"


def test_results_that_were_never_sent_are_not_missed(ask):
    assert rendered(ask, called(function("f", id="1")), USER) == "assistant:(f {})\nuser:hi\n"


def test_a_result_of_no_call_is_refused_by_its_id(ask):
    error = refused(ask, called(function("f", id="c1")), result("x", tool_call_id="c9"))
    assert error["message"] == (
        "messages[2].tool_call_id is 'c9', which no earlier message calls; the last calls are 'c1'"
    )
    assert "without a result" in refused(ask, result("x"))["message"]


@pytest.mark.parametrize(
    ("calls", "param"),
    [
        ([{"id": "c1"}], "messages.1.tool_calls.0.function"),
        ([{"function": {"arguments": "{}"}}], "messages.1.tool_calls.0.function.name"),
        ([function("")], "messages.1.tool_calls.0.function.name"),
        ([function("f" * 513)], "messages.1.tool_calls.0.function.name"),
        ([function("f", [1])], "messages.1.tool_calls.0.function.arguments"),
        ([function("f", 5)], "messages.1.tool_calls.0.function.arguments"),
        ([function("f", id=5)], "messages.1.tool_calls.0.id"),
        ([function("f", index=-1)], "messages.1.tool_calls.0.index"),
        ([function("f", type="custom")], "messages.1.tool_calls.0.type"),
        ({"a": 1}, "messages.1.tool_calls"),
        ("f()", "messages.1.tool_calls"),
        ([1] * (LIMITS.max_messages + 1), "messages.1.tool_calls"),
    ],
)
def test_wrong_shapes_are_refused_by_their_place(ask, calls, param):
    assert refused(ask, called() | {"tool_calls": calls})["param"] == param


@pytest.mark.parametrize(
    "arguments",
    ['{"a": ', "[1]", '"{}"', "5", '{"a": NaN}', "[" * 5000, '{"a":' * 300 + "1" + "}" * 300],
)
def test_arguments_that_are_no_object_are_refused_by_their_place(ask, arguments):
    error = refused(ask, called(function("f", arguments, id="c1")))
    assert error["message"].startswith("messages[1].tool_calls[0]: the text of its arguments is")


def test_unknown_fields_of_calls_are_named(ask):
    call = {"id": "c1", "function": {"name": "f", "arguments": "", "mood": 1}, "extra": {"a": 1}}
    response, _ = ask(called(call))
    assert response.headers["x-ignored-params"] == (
        "messages[].tool_calls[].extra, messages[].tool_calls[].function.mood"
    )


def test_only_calls_that_all_have_a_place_are_sorted():
    first, second = function("f", index=1), function("g")
    read = [MessageCall.model_validate(one, context=LIMITS) for one in (first, second)]
    assert calls_of(read, None) == [ToolCall("", "f", "{}"), ToolCall("", "g", "{}")]
    assert calls_of(None, None) == []


def test_a_call_is_typed_strictly():
    with pytest.raises(ValidationError):
        MessageCall.model_validate(function("f", index="1"), context=LIMITS)
