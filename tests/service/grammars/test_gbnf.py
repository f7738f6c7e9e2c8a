"""GBNF is told from Lark's notation, read into trees, or refused by line and column."""

from __future__ import annotations

import contextlib
import time

import pytest

from service.grammars.errors import InvalidGrammarError
from service.grammars.gbnf import (
    MAX_LEVELS,
    Chain,
    Characters,
    Either,
    Literal,
    Reference,
    Repeat,
    is_gbnf,
    read_gbnf,
)
from service.grammars.limits import MAX_SOURCE_BYTES


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        ('root ::= "a"', True),
        ('# root: or /* what */ start: "\nroot::=[a:]', True),
        ('\n\n  root\n::= "a : b"', True),
        ('start: "a ::= b"', False),
        ("start[max_tokens=3]: /a*/", False),
        ('start[stop="x ::= y"]: /a*/', False),
        ("%ignore /x ::= y/\nstart: A", False),
        ("// root ::= this\nstart: A", False),
        ('%llguidance {"no_forcing": true}\nstart: A', False),
        ("?start: A", False),
        ("A.1: /x/", False),
        ("", None),
        ("# root ::= a", None),
        ("what is this", None),
    ],
)
def test_the_notation_is_told_by_how_the_first_rule_is_defined(grammar, expected):
    assert is_gbnf(grammar) is expected


def one(text):
    """The tree of a rule."""
    return read_gbnf(f"root ::= {text}")["root"].node


def characters(*ranges):
    return Characters(tuple((ord(first), ord(last)) for first, last in ranges))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"ab"', Literal("ab")),
        ('""', Literal("")),
        ("", Chain(())),
        (r'"\n\t\r\"\\\[\]\x41\u00e9\u004112\U0001F600"', Literal('\n\t\r"\\[]AéA12😀')),
        ('"# : ::= \n |"', Literal("# : ::= \n |")),
        ("[abx]", characters("ab", "xx")),
        ("[a-cb-e]", characters("ae")),
        ("[-+]", characters("++", "--")),
        ("[a-]", characters("--", "aa")),
        (r"[\]\\\x2D\-a]", characters("--", "\\]", "aa")),
        ("[a^]", characters("^^", "aa")),
        (r"[^\x01-\U0010FFFF]", characters("\0\0")),
        (".", Characters(((0, 0xD7FF), (0xE000, 0x10FFFF)))),
        ('"a" | | "b"', Either((Literal("a"), Chain(()), Literal("b")))),
        ('"a" "b" | "c"', Either((Chain((Literal("a"), Literal("b"))), Literal("c")))),
        ('("a" | "b") "c"', Chain((Either((Literal("a"), Literal("b"))), Literal("c")))),
        ('"a"*', Repeat(Literal("a"), 0, None)),
        ('"a" +', Repeat(Literal("a"), 1, None)),
        ('"a"?', Repeat(Literal("a"), 0, 1)),
        ('"a"{2}', Repeat(Literal("a"), 2, 2)),
        ('"a"{2,}', Repeat(Literal("a"), 2, None)),
        ('"a"{ 2 , 3 }', Repeat(Literal("a"), 2, 3)),
        ('("y"+)?', Repeat(Repeat(Literal("y"), 1, None), 0, 1)),
        ('("a"{1,2}){2,3}', Repeat(Repeat(Literal("a"), 1, 2), 2, 3)),
        ('"a" # | "b"\n | "c"', Either((Literal("a"), Literal("c")))),
        ("root-1_a2\nroot-1_a2 ::= .", Reference("root-1_a2")),
    ],
)
def test_each_part_of_the_notation_is_read(text, expected):
    assert one(text) == expected


def test_rules_go_over_lines_and_end_where_the_next_begins():
    rules = read_gbnf('root ::=\n  "a"\n  | b\n  c\n\n# more\nb ::= "x"\nc::="y"')
    assert list(rules) == ["root", "b", "c"]
    assert rules["root"].node == Either((Literal("a"), Chain((Reference("b"), Reference("c")))))


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ('root ::= "a"\n  foo', "line 2, column 3: there is no rule 'foo'"),
        ('root ::= "a"\nx ::= foo', "line 2, column 7: there is no rule 'foo'"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: there is a rule 'root' already"),
        ('a ::= "b"', "no rule 'root'"),
        ('root ::= "a"\r\n)', "line 2, column 1: expected no ), as no group was opened"),
        ('root ::= (\n"a"', "line 2, column 4: expected ) of the group at line 1, column 10"),
        ('root ::= "a', "line 1, column 10: expected the end of the text"),
        ("root ::= [a", "line 1, column 10: expected the end of the characters: ]"),
        ("root ::= []", "line 1, column 10: expected characters in the brackets"),
        ("root ::= [^]", "line 1, column 10: expected characters in the brackets"),
        ("root ::= [z-a]", "column 10: expected a range in order, found '[z-a]'"),
        (r'root ::= "\q"', r"column 11: expected \n, \r, \t"),
        (r'root ::= "\u12"', "column 11: expected 4 hexadecimal digits"),
        (r'root ::= "\xg1"', "column 11: expected 2 hexadecimal digits"),
        (r'root ::= "\U00110000"', "column 11: expected a character of at most 10FFFF"),
        (r'root ::= "\ud83d\ude00"', "column 11: expected a character, found half of a pair"),
        ('root ::= "\ud800"', "column 11: expected a character, found half of a pair"),
        ('root ::= * "a"', "column 10: expected what * repeats before it"),
        ('root ::= ("a" | ?)', "column 17: expected what ? repeats before it"),
        ('root ::= "a"{3,2}', "column 13: expected no fewer than 3 times, found 2"),
        ('root ::= "a"{,2}', "column 13: expected {m}, {m,} or {m,n}"),
        ('root ::= "a"{x}', "column 13: expected {m}, {m,} or {m,n}"),
        ('root ::= "a"{²}', "column 13: expected {m}, {m,} or {m,n}"),
        ('root ::= "a"{2', "column 13: expected }"),
        (f'root ::= "a"{{{"9" * 10_000}}}', "column 13: expected at most 100000 times"),
        ("root ::= <[123]>", "column 10: tokens by id or name"),
        ("root ::= <think>", "column 10: tokens by id or name"),
        ("root ::= !<think>", "column 10: tokens by id or name"),
        ('root ::= "a" ::= "b"', "column 14: expected no ::= here"),
        ('root ::= "a" = "b"', "column 14: expected a rule, text, characters or a group"),
        ('"a" ::= root', "column 1: expected the name of a rule, found '\"a\"'"),
        ("root", "column 5: expected ::=, found the end"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_place(grammar, words):
    with pytest.raises(InvalidGrammarError) as refused:
        read_gbnf(grammar)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000,
        'root ::= "a"' + "?*" * 30_000,
        "root ::= " + "(" * MAX_LEVELS + '"a"' + ")" * MAX_LEVELS,
    ],
)
def test_what_is_too_deep_is_refused(grammar):
    with pytest.raises(InvalidGrammarError, match="more than 100 groups and repetitions"):
        read_gbnf(grammar)


def test_as_deep_as_may_be_is_read():
    for groups, marks in ((MAX_LEVELS - 2, 0), (MAX_LEVELS // 2, MAX_LEVELS // 2 - 2)):
        depth = "(" * groups + '"a"' + "?" * marks + ")" * groups
        assert read_gbnf(f"root ::= {depth}")["root"].levels == MAX_LEVELS


@pytest.mark.usefixtures("others_objects_set_aside")
@pytest.mark.parametrize(
    "part", ['"\\', "[", "[a", "/a", "#\n", "a ", ": ", '"a"|', "'", "\\", "{", "root ::= ", "(a) "]
)
def test_any_text_takes_linear_time(part):
    for text in (part * (MAX_SOURCE_BYTES // len(part)), 'root ::= "a"' + part * 40_000):
        begun = time.process_time()
        is_gbnf(text)
        with contextlib.suppress(InvalidGrammarError):
            read_gbnf(text)
        assert time.process_time() - begun < 1
