"""Reads GBNF, llama.cpp's notation of grammars, into trees of what it allows.

A rule ends where the next one begins, so that it may go over several lines anywhere, and not only
where llama.cpp takes that. `gbnf_lark` writes the trees for the library that follows grammars.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeAlias

from service.grammars.errors import InvalidGrammarError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_LEVELS = 100  # groups and repetitions within each other
MAX_TIMES = 100_000  # that a repetition may name
ROOT = "root"
_LAST_CHARACTER = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)  # no characters by themselves


# Of code points, both ends in, apart and in order.
Ranges: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Characters:
    """One character of some."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Literal:
    """A text."""

    text: str


@dataclass(frozen=True, slots=True)
class Chain:
    """One after the other; nothing where there are none."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """The same several times."""

    item: Node
    least: int
    most: int | None  # None: without end


@dataclass(frozen=True, slots=True)
class Reference:
    """What another rule says."""

    rule: str


Node: TypeAlias = Characters | Literal | Chain | Either | Repeat | Reference


@dataclass(frozen=True, slots=True)
class Rule:
    """What a name stands for."""

    node: Node
    levels: int  # of nodes within each other


class _Token(NamedTuple):
    kind: str  # the name of its group in _TOKENS
    text: str
    at: int  # characters before it


_HEX = {"x": 2, "u": 4, "U": 8}  # digits of each kind of escape
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"} | {one: one for one in '\\"[]-'}
_TOKENS = re.compile(
    r"""
    (?P<space>(?:[ \t\r\n]|\#[^\r\n]*)+)
    |(?P<defines>::=)
    |(?P<name>[A-Za-z0-9_-]+)
    |(?P<literal>"(?:[^"\\]|\\.)*+")
    |(?P<characters>\[(?:[^\]\\]|\\.)*+\])
    |(?P<times>[*+?]|\{[^}"\[(]*\})
    |(?P<mark>[.|()])
    """,
    re.VERBOSE | re.DOTALL,
)
_TIMES = re.compile(r"\{\s*(\d+)\s*(?:(,)\s*(\d*)\s*)?\}", re.ASCII)
_SAYS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
# Of two notations, what comes before either's first mark of a definition: comments, texts, patterns
# and what stands in brackets.
_BEFORE_DEFINITION = re.compile(
    r"""(?:[^:"/\#\[]|\#[^\r\n]*|//[^\r\n]*|"(?:[^"\\\n]|\\.)*+"?|/(?:[^/\\\n]|\\.)*+/?
    |\[[^\]\[\n]*+\]?)*+""",
    re.VERBOSE,
)


def is_gbnf(grammar: str) -> bool | None:
    """Tell GBNF from Lark's notation by how the first rule is defined; None where none is."""
    passed = _BEFORE_DEFINITION.match(grammar)
    at = passed.end() if passed is not None else 0
    return None if at == len(grammar) else grammar.startswith("::=", at)


def read_gbnf(grammar: str) -> dict[str, Rule]:
    """Return the rules by their names, each of whose references there is. Takes linear time.

    Raises InvalidGrammarError with the place and what was expected there.
    """
    return _Reader(grammar).rules()


@dataclass(slots=True)
class _Group:
    """What stands between two parentheses, or is a rule's, as far as it was read."""

    at: int
    options: list[Node] = field(default_factory=list)
    items: list[Node] = field(default_factory=list)
    item_levels: int = 0  # of the last item
    levels: int = 0

    def add(self, node: Node, levels: int) -> None:
        self.items.append(node)
        self.item_levels = levels
        self.levels = max(self.levels, levels)

    def end_option(self) -> None:
        self.options.append(self.items[0] if len(self.items) == 1 else Chain(tuple(self.items)))
        self.items = []

    def node(self) -> Node:
        self.end_option()
        return self.options[0] if len(self.options) == 1 else Either(tuple(self.options))


class _Reader:
    def __init__(self, grammar: str) -> None:
        self._grammar = grammar
        self._references: dict[str, int] = {}  # where each name was first referred to

    def rules(self) -> dict[str, Rule]:
        tokens = list(self._tokens())
        rules: dict[str, Rule] = {}
        number = 0
        while tokens[number].kind != "end":
            name = tokens[number]
            if name.kind != "name":
                self._refuse(name.at, f"expected the name of a rule, found {_shown(name)}")
            if tokens[number + 1].kind != "defines":
                found = tokens[number + 1]
                self._refuse(found.at, f"expected ::=, found {_shown(found)}")
            if name.text in rules:
                self._refuse(name.at, f"there is a rule {_quoted(name.text)} already")
            rules[name.text], number = self._rule(tokens, number + 2)
        for reference, place in self._references.items():
            if reference not in rules:
                self._refuse(place, f"there is no rule {_quoted(reference)}")
        if ROOT not in rules:
            raise InvalidGrammarError(f"there is no rule {ROOT!r}, with which a text begins")
        return rules

    def _tokens(self) -> Iterator[_Token]:
        at, grammar = 0, self._grammar
        while at < len(grammar):
            found = _TOKENS.match(grammar, at)
            if found is None:
                self._refuse(at, self._unreadable(at))
            if found.lastgroup != "space":
                yield _Token(found.lastgroup or "", found[0], at)
            at = found.end()
        yield _Token("end", "", at)
        yield _Token("end", "", at)  # what follows the last may be asked for

    def _unreadable(self, at: int) -> str:
        """Say what is wrong with what is no token."""
        first = self._grammar[at]
        if first in "<!":
            return "tokens by id or name (<[1]>, <name>, !<…>) cannot be followed; give their text"
        unended = {'"': 'the end of the text: "', "[": "the end of the characters: ]", "{": "}"}
        if first in unended:
            return f"expected {unended[first]}"
        return f"expected a rule, text, characters or a group, found {_quoted(first)}"

    def _rule(self, tokens: Sequence[_Token], number: int) -> tuple[Rule, int]:
        """Return the rule that begins at a token, and the number of the first behind it."""
        groups = [_Group(tokens[number].at)]
        while True:
            token = tokens[number]
            if token.kind == "end" or (
                token.kind == "name" and tokens[number + 1].kind == "defines"
            ):
                break
            if token.text == "(" and token.kind == "mark":
                if len(groups) >= MAX_LEVELS:
                    self._refuse_levels(token.at)
                groups.append(_Group(token.at))
            elif token.text == ")" and token.kind == "mark":
                if len(groups) == 1:
                    self._refuse(token.at, "expected no ), as no group was opened")
                group = groups.pop()
                groups[-1].add(group.node(), group.levels + 1)
            else:
                self._take(groups[-1], token)
            if groups[-1].levels >= MAX_LEVELS:
                self._refuse_levels(token.at)
            number += 1
        if len(groups) > 1:
            self._refuse(token.at, f"expected ) of the group at {self._place(groups[-1].at)}")
        return Rule(groups[0].node(), groups[0].levels + 1), number

    def _take(self, group: _Group, token: _Token) -> None:
        """Take in a token that opens and closes nothing."""
        if token.kind == "name":
            self._references.setdefault(token.text, token.at)
            group.add(Reference(token.text), 1)
        elif token.kind == "literal":
            group.add(Literal("".join(one for one, _ in self._characters(token))), 1)
        elif token.kind == "characters":
            group.add(self._class(token), 1)
        elif token.kind == "times":
            if not group.items:
                self._refuse(token.at, f"expected what {token.text} repeats before it")
            least, most = self._times(token)
            group.add(Repeat(group.items.pop(), least, most), group.item_levels + 1)
        elif token.text == ".":
            group.add(Characters(_without([])), 1)
        elif token.text == "|":
            group.end_option()
        else:
            self._refuse(token.at, f"expected no {token.text} here")

    def _times(self, token: _Token) -> tuple[int, int | None]:
        if token.text in _SAYS:
            return _SAYS[token.text]
        found = _TIMES.fullmatch(token.text)
        if found is None:
            self._refuse(token.at, "expected {m}, {m,} or {m,n} with whole numbers")
        numbers = [one for one in (found[1], found[3]) if one]
        if any(len(one) > len(str(MAX_TIMES)) or int(one) > MAX_TIMES for one in numbers):
            self._refuse(token.at, f"expected at most {MAX_TIMES} times")
        least = int(found[1])
        most = least if not found[2] else int(found[3]) if found[3] else None
        if most is not None and most < least:
            self._refuse(token.at, f"expected no fewer than {least} times, found {most}")
        return least, most

    def _class(self, token: _Token) -> Characters:
        given = list(self._characters(token))
        is_without = bool(given) and given[0] == ("^", False)
        given = given[is_without:]
        if not given:
            self._refuse(token.at, "expected characters in the brackets")
        ranges = []
        place = 0
        while place < len(given):
            first = last = ord(given[place][0])
            # A dash in the last place is a dash.
            if place + 2 < len(given) and given[place + 1] == ("-", False):
                last = ord(given[place + 2][0])
                place += 2
            if last < first:
                self._refuse(token.at, f"expected a range in order, found {token.text[:20]!r}")
            ranges.append((first, last))
            place += 1
        return Characters(_without(ranges) if is_without else _merged(ranges))

    def _characters(self, token: _Token) -> Iterator[tuple[str, bool]]:
        """Return what stands between a token's ends, and which of it is escaped."""
        text, place = token.text, 1
        while place < len(text) - 1:
            one, length = text[place], 1
            is_escaped = one == "\\"
            if is_escaped:
                one, length = self._escape(token, place)
            if _SURROGATES[0] <= ord(one) <= _SURROGATES[1]:
                self._refuse(token.at + place, "expected a character, found half of a pair")
            yield one, is_escaped
            place += length

    def _escape(self, token: _Token, place: int) -> tuple[str, int]:
        kind = token.text[place + 1]
        if kind in _ESCAPED:
            return _ESCAPED[kind], 2
        if kind not in _HEX:
            self._refuse(
                token.at + place,
                f'expected \\n, \\r, \\t, \\", \\\\, \\[, \\], \\-, \\x, \\u or \\U, found'
                f" {_quoted(token.text[place : place + 2])}",
            )
        digits = token.text[place + 2 : place + 2 + _HEX[kind]]
        if re.fullmatch(r"[0-9A-Fa-f]+", digits) is None or len(digits) < _HEX[kind]:
            self._refuse(
                token.at + place, f"expected {_HEX[kind]} hexadecimal digits, as \\{kind} has"
            )
        if int(digits, 16) > _LAST_CHARACTER:
            self._refuse(token.at + place, f"expected a character of at most {_LAST_CHARACTER:X}")
        return chr(int(digits, 16)), 2 + len(digits)

    def _refuse_levels(self, at: int) -> NoReturn:
        self._refuse(at, f"more than {MAX_LEVELS} groups and repetitions are within each other")

    def _refuse(self, at: int, words: str) -> NoReturn:
        raise InvalidGrammarError(f"{self._place(at)}: {words}")

    def _place(self, at: int) -> str:
        before = self._grammar[:at]
        return f"line {before.count(chr(10)) + 1}, column {at - (before.rfind(chr(10)) + 1) + 1}"


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    """Return ranges apart and in order, without the halves of pairs."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    whole: list[tuple[int, int]] = []
    for first, last in merged:
        below, above = (
            (first, min(last, _SURROGATES[0] - 1)),
            (max(first, _SURROGATES[1] + 1), last),
        )
        whole += [one for one in (below, above) if one[0] <= one[1]]
    return tuple(whole)


def _without(ranges: list[tuple[int, int]]) -> Ranges:
    """Return all other characters."""
    others, begin = [], 0
    for first, last in _merged(ranges):
        others.append((begin, first - 1))
        begin = last + 1
    others.append((begin, _LAST_CHARACTER))
    return _merged([one for one in others if one[0] <= one[1]])


def _shown(token: _Token) -> str:
    return "the end" if token.kind == "end" else _quoted(token.text)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
