"""Thoughts are told from answers alike however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.tools.call_readers import HermesReader
from service.tools.reasoning_reader import ReasoningReader
from service.tools.turn_reader import PlainReader
from tests.service.tools.in_sum import in_sum, read

MARKS = ("<think>", "</think>")
CALL = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
PARTS = ["<think>", "</think>", "<", "/think>", " ", "\n", "a", "世", "👩‍👩‍👧", CALL, "<tool_call>"]


def reader(*, is_open: bool = False) -> ReasoningReader:
    return ReasoningReader(HermesReader(["weather"]), MARKS, is_open=is_open)


@settings(deadline=None)
@given(
    parts=st.lists(st.sampled_from(PARTS), max_size=10),
    is_open=st.booleans(),
    is_cut=st.booleans(),
    size=st.integers(1, 9),
)
def test_same_in_sum_however_it_is_cut(
    parts: list[str], is_open: bool, is_cut: bool, size: int
) -> None:
    written = "".join(parts)
    pieces = [written[place : place + size] for place in range(0, len(written), size)]
    whole = in_sum(read(reader(is_open=is_open), [written], is_cut=is_cut))
    assert in_sum(read(reader(is_open=is_open), list(written), is_cut=is_cut)) == whole
    assert in_sum(read(reader(is_open=is_open), pieces, is_cut=is_cut)) == whole


@pytest.mark.parametrize(
    ("written", "is_open", "found"),
    [
        ("<think>\nhm\n\n</think>\n\nyes", False, [("reasoning", "hm"), ("text", "yes")]),
        ("\n <think>hm</think>yes", False, [("reasoning", "hm"), ("text", "yes")]),
        ("\nhm </think> yes", True, [("reasoning", "hm"), ("text", "yes")]),
        ("<think>\n\n</think>\n\nyes", False, [("text", "yes")]),
        ("yes <think>no</think>", False, [("text", "yes <think>no</think>")]),
        (" \n<thin", False, [("text", " \n<thin")]),
        ("yes", False, [("text", "yes")]),
        ("a  b", True, [("reasoning", "a  b")]),
        ("", True, []),
    ],
)
def test_thoughts_come_between_the_marks_at_the_beginning(
    written: str, is_open: bool, found: list[tuple[str, str]]
) -> None:
    thinking = ReasoningReader(PlainReader(), MARKS, is_open=is_open)
    assert in_sum(read(thinking, list(written))) == found


@pytest.mark.parametrize("is_cut", [False, True])
def test_thoughts_that_are_not_closed_are_all_there_is(is_cut: bool) -> None:
    written = f"<think> {CALL} </thi"
    thinking = reader()
    found = in_sum(read(thinking, [written], is_cut=is_cut))
    assert found == [("reasoning", f"{CALL} </thi")]
    assert thinking.num_calls == 0


def test_calls_behind_thoughts_are_calls() -> None:
    thinking = reader()
    found = in_sum(read(thinking, [f"<think>{CALL}?</think>\n{CALL}"]))
    assert found == [("reasoning", f"{CALL}?"), ("call", 0, "weather", "{}", True)]
    assert thinking.num_calls == 1
