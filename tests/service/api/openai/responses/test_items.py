"""What clients send as input becomes a dialogue of turns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.api.openai.responses.items import dialogue_of
from service.api.openai.responses.request import ResponsesRequest
from service.api.request_bodies import parse_request
from service.api.requests import ignored_paths
from service.errors import InvalidFieldError, MissingFieldError, UnsupportedFieldError
from service.tools.calls import ToolCall
from tests.service.fakes import LIMITS

CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"a":1}'}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "found"}


def parsed(items: object) -> ResponsesRequest:
    return parse_request(json.dumps({"input": items}).encode(), ResponsesRequest, LIMITS)


def dialogue(items: object, instructions: str | None = None) -> list[dict[str, Any]]:
    return dialogue_of(parsed(items).input, instructions)


def user(text: object) -> dict[str, object]:
    return {"role": "user", "content": text}


def test_text_is_what_the_user_says():
    assert dialogue("hi") == [{"role": "user", "content": "hi"}]


def test_instructions_come_first_as_what_the_system_says():
    assert dialogue("hi", "Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]


def test_instructions_and_leading_messages_of_developers_are_one_turn():
    items = [{"role": "developer", "content": "No tools."}, {"role": "system", "content": "C."}]
    assert dialogue([*items, user("hi")], "Be brief.") == [
        {"role": "system", "content": "Be brief.\n\nNo tools.\n\nC."},
        {"role": "user", "content": "hi"},
    ]


def test_what_developers_say_later_is_said_at_the_beginning():
    items = [user("hi"), {"role": "developer", "content": "Read only."}, user("Look.")]
    assert dialogue(items, "Be brief.") == [
        {"role": "system", "content": "Be brief.\n\nRead only."},
        {"role": "user", "content": "hi\n\nLook."},
    ]


def test_messages_of_one_speaker_in_a_row_are_one_turn():
    """Agents send what they know of a project, of the machine and what is asked one by one."""
    items = [user("<context>"), user("Fix it.")]
    assert dialogue(items) == [{"role": "user", "content": "<context>\n\nFix it."}]


@pytest.mark.parametrize("kind", ["input_text", "output_text", "text", None, ""])
def test_parts_are_lines_whatever_their_text_is_called(kind):
    parts = [{"type": kind, "text": "one"}, {"type": kind, "text": "two"}]
    assert dialogue([user(parts)]) == [{"role": "user", "content": "one\ntwo"}]


def test_refusal_is_what_the_assistant_said():
    item = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I won't."}]}
    assert dialogue([user("hi"), item])[1] == {"role": "assistant", "content": "I won't."}


@pytest.mark.parametrize("content", ["", [], None])
def test_what_the_assistant_said_may_be_empty(content):
    assert dialogue([user("hi"), {"role": "assistant", "content": content}])[1] == {
        "role": "assistant",
        "content": "",
    }


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "hi"},
        {"type": "message", "role": "user", "content": "hi"},
        {"type": None, "role": "user", "content": "hi", "id": None, "status": None},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "user", "content": "hi"},
    ],
)
def test_message_may_lack_its_type_its_id_and_its_status(item):
    request = parsed([item])
    assert dialogue_of(request.input, None) == [{"role": "user", "content": "hi"}]
    assert ignored_paths(request) == []


def test_one_turn_of_the_assistant_comes_as_several_items():
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Look first."}]}
    said = {"role": "assistant", "content": "I shall look."}
    assert dialogue([user("hi"), thought, said, CALL, OUTPUT]) == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "I shall look.",
            "reasoning_content": "Look first.",
            "tool_calls": [ToolCall("call_1", "look", '{"a":1}')],
        },
        {"role": "tool", "tool_call_id": "call_1", "name": "look", "content": "found"},
    ]


def test_thoughts_themselves_are_read_before_their_summary():
    item = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "short"}],
        "content": [{"type": "reasoning_text", "text": "long"}],
    }
    assert dialogue([user("hi"), item])[1]["reasoning_content"] == "long"


def test_encrypted_thoughts_are_named_and_no_turn():
    request = parsed([user("hi"), {"type": "reasoning", "summary": [], "encrypted_content": "x"}])
    assert ignored_paths(request) == ["input[].encrypted_content"]
    assert len(dialogue_of(request.input, None)) == 1


def test_parallel_calls_are_of_one_turn_and_may_be_answered_in_any_order():
    other = {**CALL, "call_id": "call_2"}
    answers = [{**OUTPUT, "call_id": "call_2"}, OUTPUT]
    turns = dialogue([user("hi"), CALL, other, *answers])
    assert [call.id for call in turns[1]["tool_calls"]] == ["call_1", "call_2"]
    assert [turn["tool_call_id"] for turn in turns[2:]] == ["call_2", "call_1"]


def test_calls_one_after_the_other_are_turns_of_their_own():
    other = {**CALL, "call_id": "call_2"}
    turns = dialogue([user("hi"), CALL, OUTPUT, other, {**OUTPUT, "call_id": "call_2"}])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "assistant", "tool"]


@pytest.mark.parametrize(
    "output", ["found", [{"type": "input_text", "text": "found"}], [{"text": "found"}]]
)
def test_what_a_tool_answers_is_a_text_or_parts_of_it(output):
    assert dialogue([user("hi"), CALL, {**OUTPUT, "output": output}])[2]["content"] == "found"


def test_custom_tools_calls_are_calls_with_one_argument():
    call = {"type": "custom_tool_call", "call_id": "call_9", "name": "patch", "input": 'a "b"'}
    output = {"type": "custom_tool_call_output", "call_id": "call_9", "output": "done"}
    turns = dialogue([user("hi"), call, output])
    (made,) = turns[1]["tool_calls"]
    assert (made.name, json.loads(made.arguments)) == ("patch", {"input": 'a "b"'})
    assert turns[2]["content"] == "done"


def test_answer_to_a_call_that_is_not_there_is_refused():
    with pytest.raises(InvalidFieldError, match="answers a call that is not before it") as caught:
        dialogue([user("hi"), OUTPUT])
    assert caught.value.param == "input.1.call_id"


def test_items_of_other_types_are_left_out_and_named_once_each():
    search = {"type": "web_search_call", "id": "ws_1", "action": {"type": "search"}, "output": 5}
    request = parsed([user("hi"), search, search, {"type": "ghost_snapshot", "role": 7}])
    assert ignored_paths(request) == ["input[].web_search_call", "input[].ghost_snapshot"]
    assert dialogue_of(request.input, None) == [{"role": "user", "content": "hi"}]


def test_input_in_which_nobody_speaks_is_refused():
    with pytest.raises(InvalidFieldError, match="holds no message"):
        dialogue([{"type": "web_search_call"}])


def test_system_may_be_the_only_one_who_speaks():
    assert dialogue([{"role": "system", "content": "Begin."}]) == [
        {"role": "system", "content": "Begin."}
    ]


def test_reference_to_what_was_kept_is_refused_with_the_reason():
    with pytest.raises(UnsupportedFieldError, match="keeps nothing; send the item itself"):
        parsed([{"type": "item_reference", "id": "msg_1"}])


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
def test_media_are_refused_by_name(kind):
    with pytest.raises(UnsupportedFieldError, match="parts of text alone"):
        parsed([user([{"type": kind, "image_url": "data:"}])])


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"content": "hi"}, "has no role"),
        ({"role": "user"}, "has no content"),
        ({"type": "function_call", "name": "look"}, "has no call_id"),
        ({"type": "function_call", "call_id": "call_1"}, "has no name"),
        ({"type": "function_call_output", "output": "x"}, "has no call_id"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "has no text"),
        ({"role": "wizard", "content": "hi"}, "input.0.role"),
        ({"role": "user", "content": 5}, "input.0.content"),
        ({"type": "function_call", "call_id": 5, "name": "look"}, "input.0.call_id"),
        ("hi", "input.0"),
        ({"role": "user", "content": [{"text": 5}]}, "input.0.content.0.text"),
        ({"type": 5}, "input.0.type"),
        ({"role": "user", "content": [{"type": [], "x": 1}]}, "input.0.content.0"),
        ({"role": "user", "content": [{"type": ["text"]}]}, "input.0.content.0.type"),
        ({"role": "user", "content": [{"type": {"a": 1}}]}, "input.0.content.0.type"),
    ],
)
def test_item_that_lacks_something_is_refused_by_its_place(item, words):
    with pytest.raises(InvalidFieldError, match=words) as caught:
        parsed([item])
    assert caught.value.param.startswith("input.0")


@pytest.mark.parametrize("items", ["", [], [user("hi")] * 2049, [user([{"text": ""}] * 2049)]])
def test_input_that_is_empty_or_endless_is_refused(items):
    with pytest.raises(InvalidFieldError):
        parsed(items)


def test_input_must_be_given():
    with pytest.raises(MissingFieldError):
        parse_request(b"{}", ResponsesRequest, LIMITS)
