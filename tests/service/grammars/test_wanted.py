"""Forms of texts as grammars."""

from __future__ import annotations

import time

import pytest
from llguidance import LLMatcher

from engine.errors import QueueFullError
from service.grammars import wanted
from service.grammars.errors import InvalidGrammarError
from service.grammars.gbnf import is_gbnf
from service.grammars.limits import (
    MAX_CHOICES,
    MAX_PATTERN_BYTES,
    MAX_SOURCE_BYTES,
    PARSER_LIMITS,
)
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


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= again\nagain ::= "remembered" nothing',
        'start: nothing "remembered"',
        'root ::= again "remembered"\nagain ::= again "a"',
    ],
)
def test_a_grammar_that_was_refused_is_not_rewritten_again(monkeypatch, grammar):
    rewritten: list[str] = []
    monkeypatch.setattr(wanted, "is_gbnf", lambda text: rewritten.append(text) or is_gbnf(text))
    told = set()
    for _ in range(3):
        with pytest.raises(InvalidGrammarError) as refused:
            TextForm(GRAMMAR, "x", texts=[grammar]).grammar()
        told.add(str(refused.value))
    assert rewritten == [grammar]
    assert len(told) == 1


def test_a_grammar_that_must_wait_to_be_read_is_not_remembered_as_refused(monkeypatch):
    def turn_away(_grammar: str) -> None:
        raise QueueFullError("many wait", retry_after_s=1)

    form = TextForm(GRAMMAR, "x", texts=['root ::= "waits"'])
    monkeypatch.setattr(wanted, "require_readable", turn_away)
    with pytest.raises(QueueFullError):
        form.grammar()
    monkeypatch.undo()
    assert form.grammar()


def test_a_choice_is_bounded_in_number_and_size():
    for texts in (["a"] * (MAX_CHOICES + 1), ["x" * MAX_SOURCE_BYTES, "y"]):
        with pytest.raises(InvalidGrammarError):
            TextForm(CHOICE, "x", texts=texts).grammar()


@pytest.mark.parametrize(
    "texts",
    [
        ["yes", "no"],
        ["a", "ab", "abc", "b"],
        ["", "a"],
        [""],
        ["a", "a"],
        ["x"],
        ['a "quoted"\n\ttext', "\u2028", "/x/", "日本", "\x7f\x01", "C", "start", "[a-z]+", "a|b"],
        ["<a>", "%json", "// x", "# x", "\\", "\\n", "é", "e\u0301", "😀"],
        [f"text {i}" for i in range(MAX_CHOICES)],
    ],
)
def test_a_choice_takes_its_texts_and_no_others(follows, texts):
    grammar = TextForm(CHOICE, "x", texts=texts).grammar()
    few = [*texts[:10], *texts[-5:]]
    assert [text for text in few if not follows(grammar, text)] == []
    others = {"z", "ab ", "n", "aa", "text 5000x", "a|bc", "X", *(f"{text}y" for text in few)}
    others |= {text[:-1] for text in few if text} - set(texts)
    assert [text for text in others if follows(grammar, text)] == []


def test_the_longest_choice_is_followed_within_moments(follows):
    grammar = TextForm(CHOICE, "x", texts=[f"{i:04} {i * i}" for i in range(MAX_CHOICES)]).grammar()
    begun = time.process_time()
    assert follows(grammar, "4321 18671041")
    assert time.process_time() - begun < 0.5


def test_a_choice_of_one_text_is_demanded_whole(followed):
    backend, tokenizer = followed
    grammar = TextForm(CHOICE, "x", texts=["only this"]).grammar()
    matcher = LLMatcher(tokenizer, grammar, limits=PARSER_LIMITS, log_level=0)
    assert backend.decode(matcher.compute_ff_tokens()) == "only this"
    assert matcher.try_consume_tokens(matcher.compute_ff_tokens()) == len("only this")
    assert matcher.is_stopped()


SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'


@pytest.mark.parametrize(
    "grammar",
    [
        "start: %json " + SCHEMA,
        "start: part\npart: %json" + SCHEMA + "\n// %json {",
        "start: OTHER | %json\n" + SCHEMA + '\nOTHER: "%json {" | /%json "/  # %json',
        "start: %lark {\nstart: %json " + SCHEMA + "\n}",
        '%llguidance {"no_forcing": false}\nstart: %json ' + SCHEMA,
        "start: %json " + SCHEMA[:-1] + ', "x-guidance": {"whitespace_flexible": true}}',
    ],
)
def test_schemas_within_grammars_end_as_others_do(follows, grammar):
    grammar = TextForm(GRAMMAR, "x", texts=[grammar]).grammar()
    assert follows(grammar, '{"n": 12}')
    for other in ('{"n":12}', '{ "n": 12}', '{"n": 12, "m": 1}', f'{{"n": {10**18}}}'):
        assert not follows(grammar, other)


def test_what_only_looks_like_a_schema_is_left_alone(follows):
    grammar = TextForm(GRAMMAR, "x", texts=['start: "%json {" | /%json "x/ // %json {']).grammar()
    assert follows(grammar, "%json {")
    assert follows(grammar, '%json "x')


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ('{"type": "integer", "maximum": -10000000000000000000}', "`maximum`"),
        ('{"const": 9007199254740993}', "`const`"),
        ("[" * 10_000, "what follows %json is no JSON"),
        ('{"a": ' * 900 + "1" + "}" * 900, "levels"),
        ("5", "an object, true or false"),
        ("", "what follows %json is no JSON"),
        ("NaN", "an object, true or false"),
        ('{"enum": [' + "1, " * 6_000 + "1]}", "values of `enum`"),
        ('{"not": {}}', "not"),
    ],
)
def test_schemas_within_grammars_are_refused_as_others_are(schema, words):
    with pytest.raises(InvalidGrammarError) as refused:
        TextForm(GRAMMAR, "x", texts=['start: A | b\nA: "x"\nb: %json ' + schema]).grammar()
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "text", ['{"grammars": []}', ' \n{"grammars": [{"json_schema": {}}]}', "{"]
)
def test_the_librarys_own_notation_is_no_grammar(text):
    """It would pass by whatever is looked at in schemas."""
    with pytest.raises(InvalidGrammarError, match="the grammar defines nothing"):
        TextForm(TextFormKind.GRAMMAR, "x", texts=[text]).grammar()
