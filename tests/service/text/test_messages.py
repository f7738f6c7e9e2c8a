"""Dialogues: what is let through, and what a refusal tells the caller."""

from __future__ import annotations

import pytest

from service.text.errors import InvalidMessagesError
from service.text.messages import checked_turns, out_of_order, with_system_text
from service.tools.calls import ToolCall


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "x"} for role in roles]


def test_developer_is_todays_name_for_system():
    assert checked_turns([{"role": "developer", "content": "be brief"}]) == [
        {"role": "system", "content": "be brief"}
    ]


def test_text_parts_are_joined_line_by_line():
    parts = [{"type": "text", "text": "look at this:"}, {"type": "text", "text": "file"}]
    assert checked_turns([{"role": "user", "content": parts}]) == [
        {"role": "user", "content": "look at this:\nfile"}
    ]


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_fields_without_a_value_are_not_there(role):
    """As clients send back what they got, every field of it."""
    absent = {"refusal": None, "audio": None, "function_call": None, "name": None, "other": {}}
    message = {"role": role, "content": "x", "tool_calls": [], "annotations": [], "reasoning": ""}
    assert checked_turns([message | absent]) == turns(role)


@pytest.mark.parametrize("message", [{"content": None}, {"content": []}, {"content": ""}, {}])
def test_an_answer_that_said_nothing_is_empty(message):
    assert checked_turns([{"role": "assistant", **message}]) == [
        {"role": "assistant", "content": ""}
    ]


def test_names_and_reasoning_stay_beside_the_text():
    assert checked_turns([{"role": "user", "content": "x", "name": "Ada"}]) == [
        {"role": "user", "content": "x", "name": "Ada"}
    ]
    expected = [{"role": "assistant", "content": "x", "reasoning_content": "since"}]
    for both in ({"reasoning_content": "since", "reasoning": "other"}, {"reasoning": "since"}):
        assert checked_turns([{"role": "assistant", "content": "x", **both}]) == expected


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "messages is empty"),
        (
            [{"role": "user", "content": "x"}, {"role": "function", "content": "x"}],
            "messages\\[1\\].*'function'",
        ),
        ([{"content": "x"}], "messages\\[0\\].*'None'"),
        ([{"role": ["user"], "content": "x"}], "messages\\[0\\].*user"),
        ([{"role": "user"}], "messages\\[0\\].content is missing"),
        ([{"role": "user", "content": 5}], "content is of type int; send a string"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "content\\[0\\].*'image_url'"),
        ([{"role": "user", "content": ["x"]}], "content\\[0\\].*'str'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content\\[0\\].text is missing"),
        (
            [{"role": "user", "content": "x", "colour": "red"}],
            "'colour'; supported are role, content, name, reasoning_content, tool_calls, tool_",
        ),
        (
            [{"role": "user", "content": "x", "tool_calls": [{}]}],
            "'user' and has 'tool_calls', which only 'assistant'",
        ),
        (
            [{"role": "assistant", "content": "x", "tool_call_id": "1"}],
            "'assistant' and has 'tool_call_id', which only 'tool'",
        ),
        (
            [{"role": "tool", "content": "x", "tool_call_id": 5}],
            "tool_call_id is of type int; send a string",
        ),
        ([{"role": "user", "content": "x", "name": 5}], "name is of type int; send a string"),
        ([{"role": "user", "content": "x", "name": "\ud800"}], "name has a lone surrogate"),
        ([{"role": "system", "content": None}], "content is missing"),
        ([{"role": "user", "content": "a\ud800"}], "lone surrogate at position 1"),
        ([{"role": "r" * 999, "content": "x"}], "'r{50}'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(messages, why):
    with pytest.raises(InvalidMessagesError, match=why):
        checked_turns(messages)


@pytest.mark.parametrize(
    ("roles", "place"),
    [
        (["user"], None),
        (["system", "user", "assistant", "user"], None),
        (["assistant", "user"], "messages[0] is of role 'assistant', expected 'user'"),
        (["user", "user"], "messages[1] is of role 'user', expected 'assistant'"),
        (["system", "user", "system"], "messages[2] is of role 'system', expected 'assistant'"),
        (
            ["user", "assistant"],
            "messages ends with role 'assistant', expected one more, of 'user'",
        ),
        (["system"], "messages ends with role 'system', expected one more, of 'user'"),
    ],
)
def test_the_first_message_out_of_order_is_named(roles, place):
    assert out_of_order(turns(*roles)) == place


CALL = {"role": "assistant", "content": "", "tool_calls": [ToolCall("1", "f", "{}")]}
RESULT = {"role": "tool", "content": "x", "tool_call_id": "1"}
USER, ANSWER = turns("user", "assistant")


def test_calls_and_results_stand_where_the_assistant_would_speak():
    for called in ([CALL, RESULT], [CALL, RESULT, RESULT], [CALL, RESULT, CALL, RESULT]):
        assert out_of_order([USER, *called]) is None
        assert out_of_order([USER, *called, ANSWER, USER]) is None
        assert out_of_order([USER, *called, ANSWER], last="assistant") is None
    assert out_of_order([USER, CALL, RESULT, USER]) == (
        "messages[3] is of role 'user', expected 'assistant'"
    )
    assert out_of_order([USER, CALL]) == "messages ends with calls of tools, expected their results"
    assert out_of_order([USER, CALL, RESULT], last="assistant") == (
        "messages ends with role 'tool', expected one more, of 'assistant'"
    )


def test_a_tool_that_gave_nothing_back_is_empty():
    for content in ({}, {"content": None}, {"content": []}, {"content": ""}):
        result = {"role": "tool", "tool_call_id": "1", **content}
        assert checked_turns([USER, CALL, result])[2] == {
            "role": "tool",
            "content": "",
            "tool_call_id": "1",
            "name": "f",
        }


def test_an_answer_to_be_continued_is_in_order():
    assert out_of_order(turns("user", "assistant"), last="assistant") is None
    assert out_of_order(turns("assistant", "assistant"), last="assistant") == (
        "messages[0] is of role 'assistant', expected 'user'"
    )


SYSTEM = {"role": "system", "content": "be brief"}


def test_a_text_for_the_model_joins_its_rules():
    assert with_system_text([SYSTEM, USER], "more") == [
        {"role": "system", "content": "be brief\n\nmore"},
        USER,
    ]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for content, joined in ((parts, "a\nb\n\nmore"), ("", "more"), ([], "more")):
        late = [USER, {"role": "developer", "content": content}]
        assert with_system_text(late, "more") == [USER, {"role": "developer", "content": joined}]
    assert SYSTEM["content"] == "be brief"


def test_without_rules_it_becomes_one_or_goes_to_the_first_user():
    assert with_system_text([USER], "more") == [{"role": "system", "content": "more"}, USER]
    first, second = {**USER, "name": "ann"}, {**USER, "content": "y"}
    assert with_system_text([ANSWER, first, second], "more", takes_system=False) == [
        ANSWER,
        {**first, "content": "more\n\nx"},
        second,
    ]
    assert with_system_text([ANSWER], "more", takes_system=False)[0]["role"] == "system"
