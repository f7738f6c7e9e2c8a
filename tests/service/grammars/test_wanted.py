"""Forms of texts as grammars."""

from __future__ import annotations

import time

import pytest

from service.grammars.errors import InvalidGrammarError
from service.grammars.limits import MAX_CHOICES, MAX_PATTERN_BYTES, MAX_SOURCE_BYTES
from service.grammars.wanted import TextForm, TextFormKind

REGEX, CHOICE, GRAMMAR = TextFormKind.REGEX, TextFormKind.CHOICE, TextFormKind.GRAMMAR


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (REGEX, ["[a-c]{3,5}"]),
        (REGEX, ["(a+)+b"]),
        (REGEX, ["a/b \\/ \"c\" 'd'"]),
        (REGEX, ["é+|日本"]),
        (CHOICE, ["yes", "no"]),
        (CHOICE, ["".join(map(chr, range(1, 256)))]),
        (CHOICE, ['a "quoted"\n\ttext', "\u2028", "/x/", "日本"]),
        (GRAMMAR, ['root ::= "a" ("b" | "c")+']),
        (GRAMMAR, ['start: "x" /[0-9]+/']),
        (GRAMMAR, ['start: "a ::= b"']),
        (GRAMMAR, ["start[max_tokens=3]: /[a-z ]*/"]),
        (GRAMMAR, ['start: %json {"type": "integer"}']),
    ],
)
def test_forms_become_grammars(kind, texts):
    assert TextForm(kind, "x", texts=texts).grammar()


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (REGEX, "(a", "unclosed group"),
        (REGEX, "(?<=a)b", "look-around"),
        (REGEX, "x" * (MAX_PATTERN_BYTES + 1), f"at most {MAX_PATTERN_BYTES} are taken"),
        (REGEX, "(" * 30_000 + ")" * 30_000, "the pattern has 60000 bytes"),
        (REGEX, "(" * 8_000 + ")" * 8_000, ""),
        (GRAMMAR, "root ::= nothing", "line 1, column 10: there is no rule 'nothing'"),
        (GRAMMAR, "start: nothing", 'unknown name: "nothing"'),
        (GRAMMAR, "what is this", "defines nothing; give rules as GBNF"),
        (GRAMMAR, "start: (" * 10_000, ""),
        (GRAMMAR, "x" * (MAX_SOURCE_BYTES + 1), f"at most {MAX_SOURCE_BYTES} are taken"),
    ],
)
def test_what_cannot_be_read_is_refused_within_a_second(kind, text, words):
    begun = time.process_time()
    with pytest.raises(InvalidGrammarError) as refused:
        TextForm(kind, "x", texts=[text]).grammar()
    assert time.process_time() - begun < 1
    assert words in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_choice_is_bounded_in_number_and_size():
    for texts in (["a"] * (MAX_CHOICES + 1), ["x" * MAX_SOURCE_BYTES, "y"]):
        with pytest.raises(InvalidGrammarError):
            TextForm(CHOICE, "x", texts=texts).grammar()
