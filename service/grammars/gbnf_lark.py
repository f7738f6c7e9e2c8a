"""Writes what a GBNF grammar allows in Lark's notation, as the library reads it.

What does not refer to itself becomes terminals, which are regular expressions; the rest becomes
rules over pieces, which `gbnf_lexemes` chooses. Names are made up, so that no two become one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from service.grammars.errors import InvalidGrammarError
from service.grammars.gbnf import (
    ROOT,
    Chain,
    Characters,
    Either,
    Literal,
    Reference,
    Repeat,
    read_gbnf,
)
from service.grammars.gbnf_lexemes import Work, conflicts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from service.grammars.gbnf import Node, Rule

# Nodes within each other, through the rules that they refer to: the library goes down by its stack.
MAX_LEVELS = 300
MAX_LEVELS_OF_RULES = 1_000  # the same, where rules refer to themselves
MAX_GROUPS = 20  # within each other before they get a name; the library takes 29
_NOTHING = '""'


def lark_of_gbnf(grammar: str) -> str:
    """Return a grammar in Lark's notation that allows the same texts. Raises InvalidGrammarError.

    Takes up to some 0.5 s, for grammars that are refused in the end.
    """
    rules = _referred_to(read_gbnf(grammar))
    regular = _regular(rules)
    _check_levels(rules, regular)
    return _Writer(rules, regular).grammar()


def _references(node: Node) -> Iterator[str]:
    """Return the names that a node refers to, in order."""
    ahead = [node]
    while ahead:
        one = ahead.pop()
        if isinstance(one, Reference):
            yield one.rule
        ahead += reversed(_parts(one))


def _parts(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Chain):
        return node.items
    if isinstance(node, Either):
        return node.options
    return (node.item,) if isinstance(node, Repeat) else ()


def _referred_to(rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """Return the rules that a text may need, the first of all first."""
    found = {ROOT: rules[ROOT]}
    ahead = [ROOT]
    while ahead:
        for name in _references(rules[ahead.pop()].node):
            if name not in found:
                found[name] = rules[name]
                ahead.append(name)
    return found


def _regular(rules: Mapping[str, Rule]) -> dict[str, Node]:
    """Return the rules that lead to none which refers to itself, those referred to first."""
    wanted = {name: set(_references(rule.node)) for name, rule in rules.items()}
    referring: dict[str, list[str]] = {name: [] for name in rules}
    for name, others in wanted.items():
        for other in others:
            referring[other].append(name)
    found: dict[str, Node] = {}
    ready = [name for name, others in wanted.items() if not others]
    while ready:
        name = ready.pop()
        found[name] = rules[name].node
        for other in referring[name]:
            wanted[other].discard(name)
            if not wanted[other]:
                ready.append(other)
    return found


def _check_levels(rules: Mapping[str, Rule], regular: Mapping[str, Node]) -> None:
    """Refuse rules that lead too deep."""
    levels: dict[str, int] = {}
    for name, node in regular.items():
        below = max((levels[other] for other in _references(node)), default=0)
        levels[name] = rules[name].levels + below
    _require_flat(max(levels.values(), default=0), MAX_LEVELS)
    # Of rules that refer to themselves, as deep as their first references lead.
    seen: set[str] = set()
    ahead = [(ROOT, 0)]
    while ahead:
        name, above = ahead.pop()
        if name not in seen:
            seen.add(name)
            depth = above + (levels[name] if name in levels else rules[name].levels)
            _require_flat(depth, MAX_LEVELS_OF_RULES)
            if name not in levels:
                ahead += [(other, depth) for other in _references(rules[name].node)]


def _require_flat(levels: int, most: int) -> None:
    if levels > most:
        raise InvalidGrammarError(
            f"rules refer to rules on more than {most} levels; send a flatter grammar"
        )


class _Writer:
    def __init__(self, rules: Mapping[str, Rule], regular: Mapping[str, Node]) -> None:
        self._regular = regular
        self._numbers = {name: number for number, name in enumerate(rules)}
        self._rules = rules
        self._lines: dict[str, str] = {}  # what names stand for, in Lark's words
        self._names: dict[str, str] = {}  # of pieces, by what they stand for
        self._awaited: list[str] = []  # rules that terminals name

    def grammar(self) -> str:
        """Return the grammar in Lark's notation."""
        if ROOT in self._regular:
            self._lines["start"] = self._terminal(self._regular[ROOT])
        else:
            pieces = _Pieces(self._rules, self._regular)
            self._lines["start"] = f"r{self._numbers[ROOT]}"
            for name, node in pieces.trees.items():
                self._lines[f"r{self._numbers[name]}"] = self._over_pieces(node, pieces.ids)
        while self._awaited:
            name = self._awaited.pop()
            if (terminal := f"T{self._numbers[name]}") not in self._lines:
                self._lines[terminal] = self._within(self._regular[name])
        return "\n".join(f"{name}: {text}" for name, text in self._lines.items())

    def _terminal(self, node: Node) -> str:
        text = self._within(node)
        if isinstance(node, Reference):
            return text
        name = self._names.setdefault(text, f"P{len(self._names)}")
        self._lines[name] = text
        return name

    def _over_pieces(self, node: Node, pieces: Collection[int], groups: int = 0) -> str:
        if id(node) in pieces:
            return self._terminal(node)
        if isinstance(node, Reference):
            return f"r{self._numbers[node.rule]}"
        if groups == MAX_GROUPS:
            return self._named("g", self._over_pieces(node, pieces))
        parts = [self._over_pieces(part, pieces, groups + 1) for part in _parts(node)]
        return _joined(node, parts)

    def _within(self, node: Node, groups: int = 0) -> str:
        if isinstance(node, Reference):
            self._awaited.append(node.rule)
            return f"T{self._numbers[node.rule]}"
        if isinstance(node, Literal):
            return quoted(node.text)
        if isinstance(node, Characters):
            return _class(node)
        if groups == MAX_GROUPS:
            return self._named("G", self._within(node))
        return _joined(node, [self._within(part, groups + 1) for part in _parts(node)])

    def _named(self, kind: str, text: str) -> str:
        name = f"{kind}{len(self._lines)}"
        self._lines[name] = text
        return name


class _Pieces:
    """The rules that lead to themselves, and which of their nodes the lexer takes as one piece."""

    def __init__(self, rules: Mapping[str, Rule], regular: Mapping[str, Node]) -> None:
        self.ids: set[int] = set()  # of nodes in `trees`
        self._regular = regular
        self.trees = {
            name: self._with_runs(rule.node) for name, rule in rules.items() if name not in regular
        }
        work = Work()
        while apart := conflicts(self.trees, self.ids, regular, work):
            for name, node in list(self.trees.items()):
                self.trees[name] = self._taken_apart(node, apart)

    def _with_runs(self, node: Node) -> Node:
        """Make what stands side by side one piece, where it may be."""
        if all(name in self._regular for name in _references(node)):
            self.ids.add(id(node))
            return node
        if isinstance(node, Repeat):
            return Repeat(self._with_runs(node.item), node.least, node.most)
        if isinstance(node, Chain | Either):
            runs: list[list[Node]] = []
            for part in map(self._with_runs, _parts(node)):
                if id(part) in self.ids and runs and id(runs[-1][-1]) in self.ids:
                    runs[-1].append(part)
                else:
                    runs.append([part])
            joined = tuple(self._run(node, run) for run in runs)
            return Chain(joined) if isinstance(node, Chain) else Either(joined)
        return node

    def _run(self, node: Node, run: list[Node]) -> Node:
        if len(run) == 1:
            return run[0]
        one = Chain(tuple(run)) if isinstance(node, Chain) else Either(tuple(run))
        self.ids -= set(map(id, run))
        self.ids.add(id(one))
        return one

    def _taken_apart(self, node: Node, apart: Collection[int]) -> Node:
        """Return a tree in which some pieces are several."""
        if id(node) in apart:
            self.ids.remove(id(node))
            if isinstance(node, Literal):
                node = Chain(tuple(map(Literal, node.text)))
            if isinstance(node, Reference) and node.rule not in self.trees:
                self.trees[node.rule] = self._regular[node.rule]
                self.ids.add(id(self._regular[node.rule]))
            self.ids |= set(map(id, _parts(node)))
            return node
        if id(node) in self.ids:
            return node
        parts = tuple(self._taken_apart(part, apart) for part in _parts(node))
        if isinstance(node, Repeat):
            return Repeat(parts[0], node.least, node.most)
        if isinstance(node, Chain):
            return Chain(parts)
        return Either(parts) if isinstance(node, Either) else node


def _joined(node: Node, texts: list[str]) -> str:
    """Return a node in Lark's words, by those of its parts; it can stand anywhere."""
    if isinstance(node, Chain):
        return f"({' '.join(texts)})" if texts else _NOTHING
    if isinstance(node, Either):
        return f"({' | '.join(texts)})"
    if isinstance(node, Repeat) and node.most != 0:
        most = "" if node.most is None else node.most
        return f"({texts[0]}{{{node.least},{most}}})"
    return _NOTHING


def quoted(text: str) -> str:
    """Write a text as Lark has it."""
    # The one control character that JSON writes as it is, and that grammars do not take so.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def _class(node: Characters) -> str:
    ranges = (rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in node.ranges)
    return f"/[{''.join(ranges)}]/"
