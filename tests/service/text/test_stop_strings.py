"""Stop strings: nothing of one gets out, and how the text was cut makes no difference."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text.errors import InvalidStopStringError
from service.text.stop_strings import StopStrings

# Few letters, so that stop strings overlap with themselves, each other and the text.
few_letters = st.text("ab🙂", max_size=12)
stop_lists = st.lists(st.text("ab🙂", min_size=1, max_size=4), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, the longest of several."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            found = max(complete, key=len)
            return text[: end - len(found)], found
    return text, None


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    stream = StopStrings(stops)
    sent = [stream.push(piece) for piece in pieces] + [stream.flush()]
    return sent, stream.found


@given(stops=stop_lists, pieces=st.lists(few_letters, max_size=6))
def test_any_cutting_gives_the_text_before_the_first_complete_stop_string(stops, pieces):
    sent, found = run(stops, pieces)
    assert ("".join(sent), found) == expected("".join(pieces), stops)


@pytest.mark.parametrize("stops", [["</s>"], ["\n\n", "\nUser"], ["aab", "ab"], ["b", "ab"]])
@pytest.mark.parametrize(
    "text", ["x aab</s> y", "line\n\nUser", "aaab", "\n\nUse\nUser", "", "</s"]
)
def test_every_split_of_a_text_gives_the_same(stops, text):
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            sent, found = run(stops, [text[:first], text[first:second], text[second:]])
            assert ("".join(sent), found) == expected(text, stops)


@given(stops=stop_lists, text=few_letters)
def test_only_what_may_still_become_a_stop_string_is_held_back(stops, text):
    stream = StopStrings(stops)
    sent = "".join(map(stream.push, text))
    if stream.found is None:
        tails = [text[start:] for start in range(len(text) + 1)]
        held = next(tail for tail in tails if any(stop.startswith(tail) for stop in [*stops, ""]))
        assert sent == text.removesuffix(held)


def test_without_stop_strings_text_passes_at_once():
    stream = StopStrings([])
    assert stream.push("anything") == "anything"
    assert stream.flush() == ""
    assert stream.found is None


def test_nothing_comes_out_after_a_stop_string():
    stream = StopStrings(["END"])
    assert stream.push("a EN") == "a "
    assert stream.push("D b") == ""
    assert stream.found == "END"
    assert stream.push("more") == ""
    assert stream.flush() == ""


def test_a_begun_stop_string_comes_out_at_the_end():
    stream = StopStrings(["</s>"])
    assert stream.push("a </") == "a "
    assert stream.flush() == "</"
    assert stream.found is None


def test_of_two_complete_at_once_the_longer_counts():
    assert run(["b", "ab"], ["xab"]) == (["x", ""], "ab")


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InvalidStopStringError, match="empty"):
        StopStrings(["a", ""])


def test_time_is_linear_for_text_that_keeps_almost_stopping():
    stops = ["a" * 255 + "b"] * 16
    stream = StopStrings(stops)
    start = time.process_time()
    for _ in range(2000):
        stream.push("a" * 100)
    # 0.03 s on one core (2026-11); comparing anew at each character takes 250 times as long.
    assert time.process_time() - start < 3
