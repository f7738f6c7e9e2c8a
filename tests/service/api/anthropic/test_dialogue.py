"""From blocks to what a template is given."""

from __future__ import annotations

import copy
import time

import pytest

from service.api.anthropic.dialogue import (
    asked_turn,
    messages_of,
    tool_use_id,
    tools_of,
    unread,
)
from service.api.anthropic.fields import MessagesRequest
from service.errors import InvalidFieldError
from service.grammars.wanted import TextFormKind
from service.tools.calls import NO_TOOLS, ToolCall, ToolMode
from tests.service.api.anthropic.agent_requests import READ, WEB_SEARCH, first_turn, second_turn
from tests.service.api.anthropic.conftest import HI, ThinkingTemplate
from tests.service.fakes import LIMITS, ByteTokenizer, FakeEngine, says, served_model

TOKENIZER = ByteTokenizer()
ENGINE = FakeEngine(says(TOKENIZER, "yes"))
PLAIN = served_model(ENGINE, TOKENIZER)
THINKING = served_model(ENGINE, TOKENIZER, chat_template=ThinkingTemplate(TOKENIZER))


def read(*messages: dict, **fields: object) -> MessagesRequest:
    body = {"messages": list(messages) or [HI], **fields}
    return MessagesRequest.model_validate(body, context=LIMITS)


def text(said: str) -> dict:
    return {"type": "text", "text": said}


def turn(role: str, *content: dict | str) -> dict:
    return {"role": role, "content": content[0] if content == ("",) else list(content)}


def call(number: int, **arguments: object) -> dict:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": "look", "input": arguments}


def result(number: int, **fields: object) -> dict:
    return {"type": "tool_result", "tool_use_id": f"toolu_{number}", **fields}


def test_texts_of_a_turn_are_joined_by_line_breaks():
    assert messages_of(read(turn("user", text("a"), text("b")))) == [
        {"role": "user", "content": "a\nb"}
    ]


def test_system_texts_come_first_wherever_they_stood_in_their_order():
    request = read(
        turn("system", text("b"), text("c")),
        HI,
        {"role": "system", "content": "d"},
        system=[text("a"), text("A")],
    )
    assert messages_of(request) == [
        {"role": "system", "content": "a\n\nA\n\nb\nc\n\nd"},
        {"role": "user", "content": "hi"},
    ]
    assert messages_of(read(HI, system="")) == [{"role": "user", "content": "hi"}]


def test_turns_of_one_role_are_one_turn_as_are_those_that_a_system_turn_parted():
    request = read(
        HI,
        {"role": "system", "content": "s"},
        {"role": "user", "content": "ho"},
        turn("assistant", text("a")),
        turn("assistant", {"type": "thinking", "thinking": "t"}, text("b"), call(1)),
        turn("assistant", {"type": "thinking", "thinking": "u"}, call(2)),
        HI,
    )
    _, user, assistant, last = messages_of(request)
    assert user == {"role": "user", "content": "hi\nho"}
    assert assistant == {
        "role": "assistant",
        "content": "a\nb",
        "reasoning_content": "t\nu",
        "tool_calls": [ToolCall("call_1", "look", "{}"), ToolCall("call_2", "look", "{}")],
    }
    assert last == {"role": "user", "content": "hi"}


def test_thousands_of_turns_of_one_role_are_joined_quickly():
    request = read(*[{"role": "user", "content": "x" * 1900 + "🙂"}] * 2048)
    started = time.monotonic()
    (message,) = messages_of(request)
    assert time.monotonic() - started < 1  # some seconds where each is added to all before it
    assert len(message["content"]) == 2048 * 1902 - 1


def test_calls_and_their_results_become_turns_of_their_own():
    request = read(
        HI,
        turn("assistant", call(1, path="ä", deep={"n": [1]}), call(2)),
        turn("user", text("here"), result(2, content="b"), result(1, content=[text("a")])),
    )
    _, assistant, second, first, user = messages_of(request)
    arguments = '{"path": "ä", "deep": {"n": [1]}}'
    assert assistant["tool_calls"][0] == ToolCall("call_1", "look", arguments)
    assert second == {"role": "tool", "tool_call_id": "call_2", "content": "b", "name": "look"}
    assert first == {"role": "tool", "tool_call_id": "call_1", "content": "a", "name": "look"}
    assert user == {"role": "user", "content": "here"}


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({}, ""),
        ({"content": None}, ""),
        ({"content": []}, ""),
        ({"content": "a"}, "a"),
        ({"content": [text("a"), text("b")]}, "a\nb"),
        ({"content": "a", "is_error": True}, "Error: a"),
        ({"is_error": True}, "Error:"),
        ({"content": "a", "is_error": False}, "a"),
    ],
)
def test_a_result_may_say_nothing_or_that_its_tool_failed(fields, content):
    request = read(HI, turn("assistant", call(1)), turn("user", result(1, **fields)))
    assert messages_of(request)[2:] == [
        {"role": "tool", "tool_call_id": "call_1", "name": "look", "content": content}
    ]


def test_a_result_of_no_call_is_refused_by_its_place():
    request = read(HI, turn("assistant", call(1)), turn("user", text("a"), result(2)))
    with pytest.raises(InvalidFieldError, match="no call before it has this id") as caught:
        messages_of(request)
    assert caught.value.param == "messages.2.content.1.tool_use_id"


def test_a_calls_id_comes_back_as_it_was_made():
    made = tool_use_id("call_abc")
    assert made == "toolu_abc"
    answered = {"type": "tool_result", "tool_use_id": made}
    back = messages_of(read(HI, turn("assistant", call(1) | {"id": made}), turn("user", answered)))
    assert back[2]["tool_call_id"] == "call_abc"
    assert back[1]["tool_calls"][0].id == "call_abc"
    foreign = turn("assistant", call(1) | {"id": "chatcmpl-tool-7"})
    assert messages_of(read(HI, foreign, HI))[1]["tool_calls"][0].id == "chatcmpl-tool-7"


def test_the_billing_line_is_left_out_and_named():
    requests = [read(**first_turn(cch)) for cch in ("00000", "fffff")]
    first, second = [messages_of(request) for request in requests]
    assert first == second
    assert first[0]["content"] == "You are an agent.\n\nUse the tools.\n\nAnswer in one sentence."
    assert "system.x-anthropic-billing-header" in unread(requests[0], PLAIN)
    as_text = read(system="x-anthropic-billing-header: cch=1;\n\nYou are an agent.")
    assert messages_of(as_text)[0]["content"] == "You are an agent."
    only = read(system=first_turn()["system"][:1])
    assert messages_of(only) == [{"role": "user", "content": "hi"}]


def test_the_billing_line_is_left_out_of_later_system_texts_too():
    billing = "x-anthropic-billing-header: cch=1;"
    late = read(system=[text("Be kind."), text(billing), text(f"{billing}\nBe brief.")])
    assert messages_of(late)[0]["content"] == "Be kind.\n\nBe brief."
    assert unread(late, PLAIN) == ["system.x-anthropic-billing-header"]
    for said in (billing, f"{billing}\n\nBe brief."):
        request = read(turn("system", text(said), text("Be kind.")), HI)
        rest = "Be brief.\nBe kind." if "brief" in said else "Be kind."
        assert messages_of(request)[0]["content"] == rest
        assert unread(request, PLAIN) == ["messages[].content[].x-anthropic-billing-header"]
    only = read(turn("system", text(billing)), HI)
    assert [message["role"] for message in messages_of(only)] == ["user"]


def test_a_text_that_speaks_of_the_billing_line_is_left_as_it_is():
    said = "Explain this line:\nx-anthropic-billing-header: cch=1;"
    request = read(turn("user", text(said)), system=said)
    assert [message["content"] for message in messages_of(request)] == [said, said]
    assert unread(request, PLAIN) == []


def test_an_agents_second_request_as_templates_are_given_it():
    messages = messages_of(read(**second_turn()))
    assert [message["role"] for message in messages] == [
        *("system", "user", "assistant", "tool", "tool", "user"),
    ]
    assert messages[0]["content"].endswith("Answer in one sentence.\n\nTen tokens are left.")
    assert messages[2]["reasoning_content"] == "I must read it."
    assert [one.arguments for one in messages[2]["tool_calls"]] == [
        '{"file_path": "a.py"}',
        '{"file_path": "b.py"}',
    ]
    assert messages[3]["content"] == "Error: no such file"
    assert messages[4]["content"] == "print(1)"


def test_the_answer_goes_on_from_an_assistants_last_turn():
    options = asked_turn(read(HI, turn("assistant", text("{"))), PLAIN, most_tokens=9).options
    assert options.continue_final_message
    assert not options.add_generation_prompt
    assert options.most_tokens == 9
    usual = asked_turn(read(HI), PLAIN).options
    assert (usual.continue_final_message, usual.add_generation_prompt) == (False, True)


def test_no_answer_goes_on_from_calls():
    with pytest.raises(InvalidFieldError, match="ends with calls of tools"):
        asked_turn(read(HI, turn("assistant", text("a"), call(1))), PLAIN)


def test_tools_of_the_caller_are_offered_and_others_left_out():
    used = tools_of(read(tools=[READ, WEB_SEARCH, {"type": "custom", "name": "b"}]))
    first, second = used.tools
    assert (first.name, first.description) == ("Read", "Reads a file.")
    assert first.parameters == READ["input_schema"]
    assert (second.name, second.description, second.parameters) == ("b", "", None)
    assert (used.mode, used.only, used.is_parallel) == (ToolMode.AUTO, None, None)
    assert tools_of(read(tools=[WEB_SEARCH])) == NO_TOOLS


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ({"type": "auto"}, (ToolMode.AUTO, None, None)),
        ({"type": "none"}, (ToolMode.NONE, None, None)),
        ({"type": "any"}, (ToolMode.REQUIRED, None, None)),
        ({"type": "tool", "name": "Read"}, (ToolMode.REQUIRED, "Read", None)),
        ({"type": "auto", "disable_parallel_tool_use": True}, (ToolMode.AUTO, None, False)),
        ({"type": "any", "disable_parallel_tool_use": False}, (ToolMode.REQUIRED, None, True)),
    ],
)
def test_the_choice_of_tools(choice, found):
    used = tools_of(read(tools=[READ], tool_choice=choice))
    assert (used.mode, used.only, used.is_parallel) == found


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("enabled", {"enable_thinking": True}),
        ("adaptive", {"enable_thinking": True}),
        ("disabled", {"enable_thinking": False}),
        ("between_tools", {}),
    ],
)
def test_thinking_is_switched_where_the_template_has_a_switch(kind, kwargs):
    request = read(thinking={"type": kind})
    assert asked_turn(request, THINKING).options.template_kwargs == kwargs
    assert unread(request, THINKING) == ([] if kwargs else ["thinking"])
    assert asked_turn(request, PLAIN).options.template_kwargs == {}
    # A variant that never thinks does what "disabled" asks.
    assert unread(request, PLAIN) == ([] if kind == "disabled" else ["thinking"])


def test_effort_reaches_a_template_that_takes_it():
    request = read(output_config={"effort": "low"})
    assert asked_turn(request, THINKING).options.template_kwargs == {"reasoning_effort": "low"}
    assert unread(request, THINKING) == []
    assert asked_turn(request, PLAIN).options.template_kwargs == {}
    assert unread(request, PLAIN) == ["output_config.effort"]


def test_thoughts_are_named_where_the_template_does_not_read_them():
    request = read(HI, turn("assistant", {"type": "thinking", "thinking": "t"}, text("a")), HI)
    assert unread(request, THINKING) == []
    assert unread(request, PLAIN) == ["messages[].content[].thinking"]


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_a_schema_becomes_the_form_of_the_text(name):
    form = {"type": "json_schema", "schema": {"type": "object"}}
    field = {"format": form} if name == "output_config" else form
    found = asked_turn(read(**{name: field}), PLAIN).text_form
    assert found is not None
    assert (found.kind, found.schema) == (TextFormKind.JSON_SCHEMA, {"type": "object"})
    assert found.param.startswith(name)
    assert found.param.endswith("schema")


def test_a_request_is_left_as_it_was():
    body = second_turn()
    before = copy.deepcopy(body)
    request = read(**body)
    assert messages_of(request) == messages_of(request)
    assert body == before
