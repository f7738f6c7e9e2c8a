"""Whole answers: blocks out of a turn's events, and why an answer ends."""

from __future__ import annotations

import pytest

from engine.outputs import FinishReason
from service.api.anthropic.answers import SIGNATURE, AnswerShape, blocks_of, usage_of
from service.serving.generation import Usage
from service.tools.turn_events import (
    CallArguments,
    CallBegin,
    CallEnd,
    ReasoningPiece,
    TextPiece,
)
from service.tools.turn_reader import PlainReader

SHAPE = AnswerShape(model="m", request_id="r", new_reader=PlainReader, is_capped=False)


def test_pieces_of_one_kind_are_one_block():
    events = [
        ReasoningPiece("so "), ReasoningPiece("so"), TextPiece("a"), TextPiece("b"),
        CallBegin(0, "call_x", "look"), CallArguments(0, '{"a"'), CallArguments(0, ": 1}"),
        CallEnd(0), CallBegin(1, "call_y", "go"), CallEnd(1), TextPiece("c"),
    ]  # fmt: skip
    assert [block.model_dump() for block in blocks_of(events)] == [
        {"type": "thinking", "thinking": "so so", "signature": SIGNATURE},
        {"type": "text", "text": "ab"},
        {"type": "tool_use", "id": "toolu_x", "name": "look", "input": {"a": 1}},
        {"type": "tool_use", "id": "toolu_y", "name": "go", "input": {}},
        {"type": "text", "text": "c"},
    ]


def test_empty_pieces_make_no_block_and_a_call_that_was_cut_off_is_none():
    events = [ReasoningPiece(""), TextPiece(""), CallBegin(0, "call_x", "look")]
    assert blocks_of([*events, CallArguments(0, '{"a')]) == []


@pytest.mark.parametrize("depth", [150, 300, 5000])
def test_a_call_of_deep_arguments_can_be_sent_as_text_if_not_as_a_call(depth):
    arguments = '{"a": ' + "[" * depth + "]" * depth + "}"
    events = [CallBegin(0, "call_x", "look"), CallArguments(0, arguments), CallEnd(0)]
    (block,) = blocks_of(events)
    assert block.type == ("tool_use" if depth < 200 else "text")
    assert arguments.replace(" ", "") in block.model_dump_json().replace(" ", "").replace("\\", "")


@pytest.mark.parametrize(
    ("reason", "stop", "num_calls", "found"),
    [
        (FinishReason.STOP, None, 0, ("end_turn", None)),
        (FinishReason.STOP, None, 2, ("tool_use", None)),
        (FinishReason.STOP, "END", 0, ("stop_sequence", "END")),
        (FinishReason.STOP, 5, 0, ("end_turn", None)),
        (FinishReason.LENGTH, None, 0, ("max_tokens", None)),
        (FinishReason.LENGTH, None, 1, ("max_tokens", None)),
    ],
)
def test_why_an_answer_ends(reason, stop, num_calls, found):
    ending = SHAPE.ending(reason, stop, num_calls)
    assert (ending.stop_reason, ending.stop_sequence) == found


def test_cached_tokens_are_told_apart_from_others():
    usage = usage_of(Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=8))
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (2, 8)
    assert (usage.output_tokens, usage.cache_creation_input_tokens) == (2, 0)
