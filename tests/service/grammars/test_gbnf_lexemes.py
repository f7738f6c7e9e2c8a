"""Pieces of recursive grammars are taken apart where a lexer would read them otherwise."""

from __future__ import annotations

import pytest

from service.grammars.errors import InvalidGrammarError
from service.grammars.gbnf import Chain, Characters, Literal, Reference, Repeat
from service.grammars.gbnf_lexemes import MAX_WORK, Work, conflicts

LETTERS = Repeat(Characters(((ord("a"), ord("z")),)), 1, None)
DIGITS = Repeat(Characters(((ord("0"), ord("9")),)), 1, None)
QUOTE = Literal('"')


def apart(*nodes):
    """Which of some nodes, one behind the other in a rule that goes on with itself, are refused."""
    tree = Chain((*nodes, Reference("root")))
    found = conflicts({"root": tree}, {id(node) for node in nodes}, {}, Work())
    return [node for node in nodes if id(node) in found]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([LETTERS, DIGITS], []),
        ([LETTERS, QUOTE], []),
        ([LETTERS], [LETTERS]),  # where one ends and the next begins cannot be told
        ([LETTERS, Literal("b")], [LETTERS]),
        ([Literal("in"), DIGITS], []),
        ([Repeat(Literal("a"), 0, 1), Literal("ab")], []),
        ([Repeat(DIGITS, 0, 1), QUOTE, LETTERS, Repeat(LETTERS, 0, 1)], [LETTERS]),
        ([Characters(((0, 0xD7FF),)), Literal("ab")], []),
    ],
)
def test_a_piece_that_may_go_on_with_what_follows_it_is_found(nodes, expected):
    assert apart(*nodes)[:1] == expected


def test_a_longer_piece_is_found_beside_a_shorter_one():
    short, long, behind = Literal("a"), Literal("ab"), Literal("bc")
    tree = Chain((Repeat(short, 0, 1), Repeat(long, 0, 1), behind))
    found = conflicts({"root": tree}, {id(short), id(long), id(behind)}, {}, Work())
    assert found == {id(long)}


def test_pieces_are_followed_through_the_rules_that_they_name():
    piece = Reference("word")
    tree = Chain((piece, Reference("root")))
    assert conflicts({"root": tree}, {id(piece)}, {"word": LETTERS}, Work()) == {id(piece)}


def test_work_is_bounded():
    work = Work()
    work.add(MAX_WORK)
    with pytest.raises(InvalidGrammarError, match="too many ways"):
        work.add()
