"""Text that comes from strangers."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.commands.text import harmless, printable


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größer\n\t模型 👩‍👩‍👧", "größer\n\t模型 👩‍👩‍👧"),
        ("\x1b[2Jgone", "␛[2Jgone"),
        ("a\r\nb\rc", "a\nbc"),
        ("\x9b31m\x7f\x07\x08\x00", "�31m␡␇␈␀"),
        ("\u202egnp.exe\u2066\u200f", "�gnp.exe��"),
        ("\ud800", "�"),
    ],
)
def test_harmless_text_keeps_its_lines_and_shows_what_could_steer_a_terminal(text, shown):
    assert harmless(text) == shown


@given(st.text())
def test_harmless_text_has_no_control_characters_and_can_be_written(text):
    left = harmless(text)
    assert not {c for c in left if unicodedata.category(c) in ("Cc", "Cs")} - {"\n", "\t"}
    left.encode()
