"""A turn as a whole holds what its events said in sum."""

from __future__ import annotations

import pytest

from service.tools.call_readers import HermesReader
from service.tools.reasoning_reader import ReasoningReader
from service.tools.whole_turn import read_whole
from tests.service.tools.in_sum import in_sum, read

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


def test_broken_call_is_left_out_as_far_as_a_stream_has_told_it() -> None:
    turn = read_whole(reader(), CALL.replace('"UTC"', "UTC"), is_cut=False)
    assert (turn.text, turn.calls) == ("}</tool_call>", [])
    written = CALL.replace("now", "then")
    turn = read_whole(reader(), written, is_cut=False)
    assert (turn.text, turn.calls) == (written, [])


@pytest.mark.parametrize("is_cut", [False, True])
def test_whole_turn_says_what_a_stream_says_in_sum_wherever_it_ends(is_cut: bool) -> None:
    broken = CALL.replace('"UTC"', "UTC")
    written = f"<think>hm</think>One{CALL} two{broken}{CALL}"
    for end in range(len(written) + 1):
        streamed = in_sum(read(reader(), list(written[:end]), is_cut=is_cut))
        turn = read_whole(reader(), written[:end], is_cut=is_cut)
        assert turn.text == "".join(one[1] for one in streamed if one[0] == "text")
        assert [(call.name, call.arguments) for call in turn.calls] == [
            one[2:4] for one in streamed if one[0] == "call" and one[-1]
        ]
