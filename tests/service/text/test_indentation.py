"""A text ends before the first line that is indented too little."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text.indentation import Indentation


def read(text: str, least: int, cuts: list[int] | None = None) -> tuple[str, bool]:
    """Push a text in pieces; return what comes out and whether it was cut."""
    machine = Indentation(least)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts or [])})
    pieces = [text[begin:end] for begin, end in itertools.pairwise(places)]
    out = "".join(machine.push(piece) for piece in pieces)
    return out + machine.flush(), machine.is_over


@pytest.mark.parametrize(
    ("text", "least", "expected"),
    [
        ("return 1\ndef g():", 4, "return 1"),
        ("return 1\n    x\n  y", 4, "return 1\n    x"),
        ("return 1\n\tx\ny", 1, "return 1\n\tx"),
        ("a\n\n\n    b\n\n\nc", 4, "a\n\n\n    b"),
        ("a\r\n    b\r\nc", 4, "a\r\n    b"),
        ("\nx", 1, ""),
    ],
)
def test_text_ends_with_the_last_line_that_is_indented_enough(text, least, expected):
    assert read(text, least) == (expected, True)


@pytest.mark.parametrize(
    "text",
    ["x = 1", "", "a\n    b", "a\n     b\n      c", "a\n", "a\n\n  ", "a\r", "a\rb", "a\n  \n"],
)
def test_text_that_stays_inside_is_left_as_it_is(text):
    assert read(text, 4) == (text, False)


def test_first_line_goes_on_from_the_text_before_the_gap():
    assert read("x = 1", 8) == ("x = 1", False)


def test_nothing_of_a_line_is_sent_before_it_is_known_to_stay():
    machine = Indentation(4)
    assert [machine.push(piece) for piece in ["a\n", "  ", "  ", "b"]] == ["a", "", "\n    ", "b"]


def test_nothing_comes_behind_the_end():
    machine = Indentation(2)
    assert machine.push("a\nb\n    c") == "a"
    assert machine.push("    d") == ""
    assert machine.flush() == ""


@given(
    text=st.text("ab \t\r\n", max_size=40), least=st.integers(1, 4), cuts=st.lists(st.integers())
)
def test_pieces_change_nothing(text, least, cuts):
    assert read(text, least, cuts) == read(text, least)


@given(text=st.text("ab \t\n", max_size=40), least=st.integers(1, 4))
def test_every_line_that_comes_out_is_indented_enough_or_blank(text, least):
    out, is_over = read(text, least)
    assert text.startswith(out)
    for line in out.split("\n")[1:]:
        has_text = bool(line.strip(" \t"))
        assert not has_text or len(line) - len(line.lstrip(" \t")) >= least
    assert is_over or out == text
