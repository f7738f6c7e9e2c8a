"""Items are put together out of a turn's parts, and every change is an event."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.api.openai.responses.answer_models import ResponseStreamEvent
from service.api.openai.responses.output import TurnOutput
from service.tools.turn_events import (
    CallArguments,
    CallBegin,
    CallEnd,
    ReasoningPiece,
    TextPiece,
    TurnEvent,
)

THOUGHT = [ReasoningPiece("Let me "), ReasoningPiece("see.")]
SAID = [TextPiece("It is "), TextPiece("so.")]


def call(index: int, name: str = "look", arguments: str = '{"a": 1}') -> list[TurnEvent]:
    half = len(arguments) // 2
    return [
        CallBegin(index, f"call_{index}", name),
        CallArguments(index, arguments[:half]),
        CallArguments(index, arguments[half:]),
        CallEnd(index),
    ]


def told(output: TurnOutput, turn: list[TurnEvent]) -> list[dict[str, Any]]:
    return [event for part in turn for event in output.push(part)]


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def check_pairs(events: list[dict[str, Any]]) -> None:
    """Each event fits its model; what is added is done, in order, and deltas add up to it."""
    items: dict[int, dict[str, Any]] = {}
    texts: dict[int, str] = {}
    done: set[int] = set()
    for number, event in enumerate(events):
        ResponseStreamEvent.model_validate({**event, "sequence_number": number})
        index = event["output_index"]
        kind = event["type"]
        if kind == "response.output_item.added":
            assert index == len(items)
            items[index] = event["item"]
            assert event["item"]["status"] == "in_progress"
            continue
        assert index in items
        assert index not in done
        if "item_id" in event:
            assert event["item_id"] == items[index]["id"]
        if kind.endswith(".delta"):
            texts[index] = texts.get(index, "") + event["delta"]
        elif kind == "response.output_item.done":
            assert event["item"]["id"] == items[index]["id"]
            done.add(index)
        elif kind.endswith(".done") and "part" not in event:
            whole = next(event[name] for name in ("text", "arguments", "input") if name in event)
            assert texts.get(index, "") == whole
    assert done == items.keys()
    parts = kinds(events)
    assert parts.count("content_part.added") == parts.count("content_part.done")


def test_text_is_a_message_of_one_part():
    output = TurnOutput("n")
    events = told(output, SAID) + output.finish(is_cut=False)
    assert kinds(events) == [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    check_pairs(events)
    (item,) = output.items
    assert item["content"][0]["text"] == "It is so."
    assert (item["status"], item["role"], item["id"]) == ("completed", "assistant", "msg_n_0")
    assert events[0]["item"]["content"] == []


def test_thoughts_are_an_item_before_the_message():
    output = TurnOutput("n")
    events = told(output, THOUGHT + SAID) + output.finish(is_cut=False)
    assert kinds(events)[:6] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
    ]
    check_pairs(events)
    thought, message = output.items
    assert thought["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert (thought["type"], thought["summary"], thought["status"]) == (
        "reasoning",
        [],
        "completed",
    )
    assert message["type"] == "message"


def test_call_is_an_item_with_the_calls_own_id():
    output = TurnOutput("n")
    events = told(output, call(0)) + output.finish(is_cut=False)
    assert kinds(events) == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    check_pairs(events)
    assert output.items == [
        {
            "id": "fc_n_0",
            "type": "function_call",
            "call_id": "call_0",
            "name": "look",
            "arguments": '{"a": 1}',
            "status": "completed",
        }
    ]


def test_text_calls_and_text_are_items_in_their_order():
    output = TurnOutput("n")
    turn = [*THOUGHT, *SAID, *call(0), *call(1), TextPiece("Done.")]
    events = told(output, turn) + output.finish(is_cut=False)
    check_pairs(events)
    assert [item["type"] for item in output.items] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
        "message",
    ]
    assert len({item["id"] for item in output.items}) == 5


def test_calls_that_come_beside_each_other_stay_in_the_order_of_their_beginning():
    first, second = call(0), call(1)
    mixed = [first[0], second[0], second[1], first[1], second[2], second[3], first[2], first[3]]
    output = TurnOutput("n")
    events = told(output, mixed) + output.finish(is_cut=False)
    check_pairs(events)
    assert [item["call_id"] for item in output.items] == ["call_0", "call_1"]


def test_custom_tool_is_called_with_a_text_as_it_is():
    output = TurnOutput("n", frozenset({"patch"}))
    text = '*** Begin "Patch"\n+ä'
    turn = call(0, "patch", json.dumps({"input": text}))
    events = told(output, turn) + output.finish(is_cut=False)
    assert kinds(events) == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    check_pairs(events)
    (item,) = output.items
    assert (item["type"], item["input"], item["id"]) == ("custom_tool_call", text, "ctc_n_0")


@pytest.mark.parametrize(
    "arguments",
    # No answer could hold the last one's text: half of a character.
    ["no JSON", '{"other": 1}', "[1]", '{"input": 5}', r'{"input": "\ud800"}'],
)
def test_custom_tool_called_otherwise_is_given_all_there_was(arguments):
    output = TurnOutput("n", frozenset({"patch"}))
    check_pairs(told(output, call(0, "patch", arguments)) + output.finish(is_cut=False))
    assert output.items[0]["input"] == arguments


def test_text_that_was_cut_is_incomplete_and_what_came_before_is_not():
    output = TurnOutput("n")
    events = told(output, THOUGHT + SAID) + output.finish(is_cut=True)
    check_pairs(events)
    assert [item["status"] for item in output.items] == ["completed", "incomplete"]


@pytest.mark.parametrize("custom", [frozenset(), frozenset({"look"})])
@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_call_that_was_cut_ends_and_is_no_call(num_parts, custom):
    output = TurnOutput("n", custom)
    events = told(output, SAID + call(0)[:num_parts]) + output.finish(is_cut=True)
    check_pairs(events)
    assert events[-1]["item"]["status"] == "incomplete"
    assert [item["type"] for item in output.items] == ["message"]


def test_call_without_an_end_is_no_call_though_nothing_was_cut():
    output = TurnOutput("n")
    check_pairs(told(output, call(0)[:2]) + output.finish(is_cut=False))
    assert output.items == []


def test_call_that_turns_out_to_be_text_ends_and_its_text_is_said():
    output = TurnOutput("n")
    turn = [*call(0)[:2], TextPiece('{"a": oh'), TextPiece(" well")]
    check_pairs(told(output, turn) + output.finish(is_cut=False))
    (item,) = output.items
    assert item["content"][0]["text"] == '{"a": oh well'


def test_turn_that_says_nothing_is_an_empty_message():
    output = TurnOutput("n")
    check_pairs(output.finish(is_cut=False))
    (item,) = output.items
    assert item["content"][0]["text"] == ""


def test_answer_that_fails_ends_what_is_open():
    turn = [*THOUGHT, *SAID, *call(0), *call(1)]
    for count in range(len(turn) + 1):
        output = TurnOutput("n")
        events = told(output, turn[:count])
        check_pairs(events + output.break_off())
        assert output.break_off() == []


def test_logprobs_come_with_their_text_and_again_with_the_whole():
    output = TurnOutput("n")
    one = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}
    events = [*output.push(TextPiece("a"), [one]), *output.push(TextPiece("b"), [one])]
    events += output.finish(is_cut=False)
    check_pairs(events)
    deltas = [event for event in events if event["type"].endswith("text.delta")]
    assert [event["logprobs"] for event in deltas] == [[one], [one]]
    assert output.items[0]["content"][0]["logprobs"] == [one, one]
    (whole,) = [event for event in events if event["type"].endswith("text.done")]
    assert whole["logprobs"] == [one, one]
