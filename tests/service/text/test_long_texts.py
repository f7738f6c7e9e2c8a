"""Long texts are looked through in pieces, with what one call would have found."""

from __future__ import annotations

import random
import re

import pytest

from service.text import long_texts
from service.text.long_texts import TextPattern, characters_among

PIECES = re.compile(r"<\|b\|>|<a>|ab")
BEGINNINGS = re.compile(r"(?=(?:<\|b\|>|<a>|ab))(?s:.)")


@pytest.mark.parametrize("expression", [PIECES, BEGINNINGS])
@pytest.mark.parametrize("seed", range(100))
def test_matches_are_those_of_the_whole_text(monkeypatch, expression, seed):
    monkeypatch.setattr(long_texts, "_PIECE", 7)
    chance = random.Random(seed)
    text = "".join(chance.choices(["<|b|>", "<a>", "ab", "<", "|", "a", "\n"], k=40))
    pattern = TextPattern(expression, reach=5)
    assert pattern.sub(lambda found: f"({found})", text) == expression.sub(
        lambda found: f"({found[0]})", text
    )
    assert pattern.is_in(text) == bool(expression.search(text))
    assert not pattern.is_in("<|b|" * 20)


def test_private_characters_are_found_wherever_they_stand(monkeypatch):
    monkeypatch.setattr(long_texts, "_PIECE", 3)
    codes = range(0xF0000, 0xF0010)
    first, last, beyond = chr(codes[0]), chr(codes[-1]), chr(codes.stop)
    texts = ["abcde" + last, "é" + beyond, first * 9]
    assert characters_among(codes, texts) == {first, last}
