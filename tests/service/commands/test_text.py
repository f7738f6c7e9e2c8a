"""Text that comes from strangers."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.commands.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("main", "main"),
        ("größer 模型", "größer 模型"),
        ("\x1b[2Jgone", "?[2Jgone"),
        ("a\nb\tc", "a b c"),
        ("\u202egnp.exe", "?gnp.exe"),
        ("\x9b31m", "?31m"),
        ("\ud800", "?"),
    ],
)
def test_what_could_steer_a_terminal_is_shown_as_a_question_mark(text, shown):
    assert printable(text) == shown


@given(st.text())
def test_nothing_but_visible_text_is_left(text):
    left = printable(text)
    assert "\n" not in left
    assert not {unicodedata.category(c) for c in left} & {"Cc", "Cf", "Cs"}
