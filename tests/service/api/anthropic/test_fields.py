"""What the fields of a request may be, and what is named of those that do nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.api.anthropic.fields import MAX_TOOLS, MessagesRequest
from service.api.request_bodies import parse_request
from service.api.requests import ignored_paths
from service.errors import InvalidFieldError, RequestError, UnsupportedFieldError
from tests.service.api.anthropic.agent_requests import READ, WEB_SEARCH, second_turn
from tests.service.api.anthropic.conftest import HI
from tests.service.api.odd_values import with_odd_values
from tests.service.fakes import LIMITS

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
TEXT = {"type": "text", "text": "a"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1"}


def read(**fields: Any) -> MessagesRequest:
    body = json.dumps({"messages": [HI], **fields}).encode()
    return parse_request(body, MessagesRequest, LIMITS)


def says(role: str, *blocks: object) -> dict[str, Any]:
    return {"messages": [HI, {"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "messages: is empty"),
        ({"messages": [{"role": "user"}]}, "messages.0: has no content"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"content": "a"}]}, "messages.0.role: required"),
        (says("user", {"text": "a"}), r"messages.1.content.0.type: required"),
        (says("user", {"type": "text"}), "type text and has no text"),
        (says("user", {"type": "text", "text": 5}), "messages.1.content.0.text"),
        (says("user", CALL), "no turn of role user has"),
        (says("assistant", RESULT), "no turn of role assistant has"),
        (says("system", RESULT), "no turn of role system has"),
        (says("assistant", {**CALL, "id": None}), "type tool_use and has no id"),
        (says("assistant", {**CALL, "name": ""}), "type tool_use and has no name"),
        (says("assistant", {**CALL, "input": "{}"}), "messages.1.content.0.input"),
        (says("user", {"type": "tool_result"}), "has no tool_use_id"),
        (says("user", {**RESULT, "content": 5}), "messages.1.content.0.content"),
        (says("user", {**RESULT, "is_error": "yes"}), "messages.1.content.0.is_error"),
        (says("assistant", {"type": "thinking"}), "has no thinking"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "text"}]}, "system.0.text: required"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop_sequences": ["a"] * 17}, "at most 16"),
        ({"stop_sequences": [5]}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"tools": [{"description": "a"}]}, "tools.0: has no name"),
        ({"tools": [{"name": "a b"}]}, "tools.0.name: give 1 to 128"),
        ({"tools": [{"name": "a" * 129}]}, "tools.0.name"),
        ({"tools": [{"name": "a", "input_schema": "x"}]}, "tools.0.input_schema"),
        ({"tools": [READ, READ]}, "two of the same name"),
        ({"tools": [READ] * (MAX_TOOLS + 1)}, f"at most {MAX_TOOLS}"),
        ({"tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool"}, "tools": [READ]}, "has no name"),
        ({"tool_choice": {"type": "auto", "name": "Read"}, "tools": [READ]}, "leave it out"),
        ({"tool_choice": {"type": "tool", "name": "b"}, "tools": [READ]}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}, "tools": [WEB_SEARCH]}, "has none to be called"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "json"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "has no schema"),
        (
            {
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
                "output_format": {"type": "json_schema", "schema": {}},
            },
            "give one of them",
        ),
        ({"tools": [{"name": "a", "description": "a" * 300_000}]}, "tools has 300004 characters"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"metadata": {"user_id": "x" * 513}}, "metadata.user_id"),
    ],
)
def test_wrong_values_are_refused_by_name(fields, words):
    with pytest.raises(Exception, match=words) as caught:
        read(**fields)
    assert type(caught.value).__name__ in ("InvalidFieldError", "MissingFieldError")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (says("user", TEXT, IMAGE), r"messages.1.content: has a block of type image"),
        (says("user", {"type": "document"}), "messages.1.content: .* of type document"),
        (says("user", {**RESULT, "content": [IMAGE]}), "messages.1.content.0.content: .* image;"),
        (says("assistant", {"type": "server_tool_use"}), "messages.1.content: .* of another type"),
        ({"system": [IMAGE]}, "system: has a block of type image"),
    ],
)
def test_blocks_that_hold_no_text_are_refused_by_name(fields, words):
    with pytest.raises(UnsupportedFieldError, match=f"^{words}") as caught:
        read(**fields)
    assert "taken here: text" in str(caught.value)


def test_many_wrong_blocks_and_turns_are_counted_before_they_are_looked_at():
    many = [{"type": 5}] * 3000
    with pytest.raises(InvalidFieldError, match="has 3000 blocks; give at most 2048"):
        read(**says("user", *many))
    with pytest.raises(InvalidFieldError, match="has 3000 messages; give at most 2048"):
        read(messages=[5] * 3000)
    with pytest.raises(InvalidFieldError, match="has 3000 blocks"):
        read(system=many)
    with pytest.raises(InvalidFieldError, match="has 3000 blocks"):
        read(**says("user", {**RESULT, "content": many}))


def test_empty_and_neutral_values_say_nothing():
    request = read(
        system=[], tools=[], tool_choice={}, thinking=None, stop_sequences=[], metadata={},
        output_config={}, context_management={}, service_tier="auto", betas=[], container=None,
        mcp_servers=[], max_tokens=-1, speed="standard", inference_geo=None, stream=False,
        cache_control={"type": "ephemeral"},
    )  # fmt: skip
    assert ignored_paths(request) == []
    assert request.max_tokens is None
    assert request.system is None


def test_what_an_agent_sends_in_vain_is_named_with_its_path():
    request = read(
        **second_turn(), betas=["a"], container="c", mcp_servers=[{"url": "u"}], speed="fast"
    )
    assert ignored_paths(request) == [
        "context_management",
        "betas",
        "container",
        "mcp_servers",
        "speed",
        "messages[].content[].redacted_thinking",
        "tools[].web_search_20250305",
    ]


def test_fields_that_belong_to_another_kind_of_block_are_named():
    request = read(
        **says("assistant", {**TEXT, "name": "n", "citations": [1]}),
        thinking={"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
        tools=[{**READ, "defer_loading": True, "type": "custom"}],
        metadata={"session": "s"},
    )
    assert ignored_paths(request) == [
        "messages[].content[].citations",
        "messages[].content[].name",
        "tools[].defer_loading",
        "thinking.budget_tokens",
        "thinking.display",
        "metadata.session",
    ]


def test_cache_control_may_stand_anywhere():
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    request = read(
        **says("user", {**TEXT, **mark}, {**RESULT, **mark, "content": [{**TEXT, **mark}]}),
        **mark,
        system=[{**TEXT, **mark}],
        tools=[{**READ, **mark}],
    )
    assert ignored_paths(request) == []


def test_any_value_at_any_place_is_taken_or_refused_in_words():
    """Places are those of an agent's request; a fault of the server's would be a 500."""
    num_refused = 0
    for _, body in with_odd_values(second_turn()):
        try:
            ignored_paths(parse_request(json.dumps(body).encode(), MessagesRequest, LIMITS))
        except RequestError:
            num_refused += 1
    assert num_refused > 500
