"""A turn as a whole holds what its events said in sum."""

from __future__ import annotations

from service.tools.call_readers import HermesReader
from service.tools.reasoning_reader import ReasoningReader
from service.tools.whole_turn import read_whole

CALL = '<tool_call>{"name": "now", "arguments": {"zone": "UTC"}}</tool_call>'


def reader() -> ReasoningReader:
    return ReasoningReader(HermesReader(["now"]), ("<think>", "</think>"), is_open=False)


def test_texts_thoughts_and_calls_are_told_apart() -> None:
    turn = read_whole(reader(), f"<think>hm</think>One{CALL} two{CALL}", is_cut=False)
    assert (turn.text, turn.reasoning) == ("Onetwo", "hm")
    assert [(call.name, call.arguments) for call in turn.calls] == [("now", '{"zone": "UTC"}')] * 2
    assert turn.calls[0].id != turn.calls[1].id


def test_call_that_was_cut_off_is_left_out() -> None:
    turn = read_whole(reader(), CALL + CALL[:50], is_cut=True)
    assert (turn.text, len(turn.calls)) == ("", 1)


def test_broken_call_is_text() -> None:
    written = CALL.replace('"UTC"', "UTC")
    turn = read_whole(reader(), written, is_cut=False)
    assert (turn.text, turn.calls) == (written, [])
