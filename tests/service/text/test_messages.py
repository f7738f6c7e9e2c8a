"""Dialogs: what is let through, and what a refusal tells the caller."""

from __future__ import annotations

import pytest

from service.text.errors import InvalidMessagesError
from service.text.messages import checked_turns, out_of_order


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


def test_fields_without_a_value_are_not_there():
    message = {"role": "user", "content": "x", "name": None, "tool_calls": None}
    assert checked_turns([message]) == turns("user")


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "messages is empty"),
        (
            [{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}],
            "messages\\[1\\].*'tool'",
        ),
        ([{"content": "x"}], "messages\\[0\\].*'None'"),
        ([{"role": ["user"], "content": "x"}], "messages\\[0\\].*user"),
        ([{"role": "user"}], "messages\\[0\\].content is missing"),
        ([{"role": "user", "content": 5}], "content is of type int; send a string"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "content\\[0\\].*'image_url'"),
        ([{"role": "user", "content": ["x"]}], "content\\[0\\].*'str'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content\\[0\\].text is missing"),
        ([{"role": "user", "content": "x", "name": "me"}], "'name'.*only role and content"),
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
