"""Decides which parts of a recursive grammar its lexer may take as one piece.

The library cuts a text into pieces first, each as long as it can be, and reads rules over them;
llama.cpp reads rules over characters. Both allow the same texts where no piece can go on with a
character that could also begin what follows it: in `number "." number` the piece `[0-9.]+` would
take the dot and never give it back. Pieces make masks cheap, so as much as may be becomes one, and
where two readings would differ, the longer piece is taken apart, in the end to its characters.

To find such places, every text that the rules may allow is followed through all pieces at once,
whoever referred to a rule: that finds some places too many, and none too few.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from typing import TYPE_CHECKING

from service.grammars.errors import InvalidGrammarError
from service.grammars.gbnf import Chain, Characters, Either, Literal, Repeat

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from service.grammars.gbnf import Node, Ranges

# What may be looked at before a grammar is refused: some 0.3 s (a server CPU, 2026-11).
MAX_WORK = 300_000
# Where grammars tell more kinds of characters apart, those beyond ASCII count as one.
_MAX_CUTS = 500
_ASCII_END = 0x80


class Work:
    """Counts what was looked at."""

    def __init__(self) -> None:
        self._done = 0

    def add(self, more: int = 1) -> None:
        """Raise InvalidGrammarError where it is too much."""
        self._done += more
        if self._done > MAX_WORK:
            raise InvalidGrammarError(
                "the grammar's rules can be read in too many ways; send a smaller one, or rules"
                " that do not refer to themselves"
            )


def conflicts(
    trees: Mapping[str, Node],
    pieces: Collection[int],
    regular: Mapping[str, Node],
    work: Work,
) -> set[int]:
    """Return the ids of the pieces that must be taken apart. Raises InvalidGrammarError.

    trees: of the rules that are read over pieces, that of the whole text first; pieces: the ids of
    the nodes of these that are pieces; regular: the rules that pieces are made of.
    """
    paths = _Paths(pieces, regular, work)
    for name, node in trees.items():
        paths.add(node, *paths.ends_of(name), None)
    return _Readings(paths, work).conflicts(paths.ends_of(next(iter(trees)))[0])


class _Paths:
    """Places in all rules, and how a text leads from one to the next."""

    def __init__(self, pieces: Collection[int], regular: Mapping[str, Node], work: Work) -> None:
        self.silent: dict[int, list[int]] = defaultdict(list)  # without a character
        self.spoken: dict[int, list[tuple[Ranges, int]]] = defaultdict(list)  # by one of these
        self.piece: dict[int, int] = {}  # of each place within one: its id
        self.behind: dict[int, int] = {}  # of a piece's last place: where the rule goes on
        self._pieces, self._regular, self._work = pieces, regular, work
        self._ends: dict[str, tuple[int, int]] = {}
        self._num_places = 0

    def ends_of(self, rule: str) -> tuple[int, int]:
        """Return the places before and behind a rule that is read over pieces."""
        if rule not in self._ends:
            self._ends[rule] = (self._place(None), self._place(None))
        return self._ends[rule]

    def add(self, node: Node, begin: int, end: int, piece: int | None) -> None:
        """Add the ways through a node, within a piece or over pieces."""
        self._work.add()
        if piece is None and id(node) in self._pieces:
            piece = id(node)
            first, last = self._place(piece), self._place(piece)
            self.silent[begin].append(first)
            self.behind[last] = end
            begin, end = first, last
        if isinstance(node, Characters):
            self.spoken[begin].append((node.ranges, end))
        elif isinstance(node, Literal):
            self._add_literal(node.text, begin, end, piece)
        elif isinstance(node, Chain):
            for item in node.items:
                after = self._place(piece)
                self.add(item, begin, after, piece)
                begin = after
            self.silent[begin].append(end)
        elif isinstance(node, Either):
            for option in node.options:
                self.add(option, begin, end, piece)
        elif isinstance(node, Repeat):
            self._add_repeat(node, begin, end, piece)
        elif piece is not None:
            self.add(self._regular[node.rule], begin, end, piece)
        else:
            first, last = self.ends_of(node.rule)
            self.silent[begin].append(first)
            self.silent[last].append(end)

    def _place(self, piece: int | None) -> int:
        self._work.add()
        self._num_places += 1
        if piece is not None:
            self.piece[self._num_places] = piece
        return self._num_places

    def _add_literal(self, text: str, begin: int, end: int, piece: int | None) -> None:
        self._work.add(2 * len(text))
        for one in text:
            after = self._place(piece)
            self.spoken[begin].append((((ord(one), ord(one)),), after))
            begin = after
        self.silent[begin].append(end)

    def _add_repeat(self, node: Repeat, begin: int, end: int, piece: int | None) -> None:
        """Count no more than none, one and several: that allows more texts, and none fewer."""
        if node.least == 0:
            self.silent[begin].append(end)
        if node.most == 0:
            return
        first, last = self._place(piece), self._place(piece)
        self.silent[begin].append(first)
        self.add(node.item, first, last, piece)
        self.silent[last].append(end)
        if node.most != 1:
            self.silent[last].append(first)


class _Readings:
    """Follows all texts through all pieces that they may be in."""

    def __init__(self, paths: _Paths, work: Work) -> None:
        self._paths, self._work = paths, work
        every = {ranges for ways in paths.spoken.values() for ranges, _ in ways}
        self._kinds = _kinds_of_characters(every, work)

    def conflicts(self, begin: int) -> set[int]:
        """Return the pieces that may go on where another has ended and what follows it begins."""
        found: set[int] = set()
        states = [self._starts([begin])]
        seen = set(states)
        while states:
            state = states.pop()
            going_on = self._ways(state)
            ends = [self._paths.behind[place] for place in state if place in self._paths.behind]
            beginning = self._ways(self._starts(ends))
            for kind in going_on.keys() | beginning.keys():
                if kind in beginning:
                    found |= {self._paths.piece[place] for place in going_on.get(kind, ())}
                after = self._closed([*going_on.get(kind, ()), *beginning.get(kind, ())])
                if after not in seen:
                    seen.add(after)
                    states.append(after)
        return found

    def _starts(self, places: Iterable[int]) -> frozenset[int]:
        """Return where pieces begin that may come next; one that may be empty may be left out."""
        reached: set[int] = set()
        ahead = list(places)
        while ahead:
            place = ahead.pop()
            self._work.add()
            if place not in reached:
                reached.add(place)
                ahead += self._paths.silent.get(place, ())
                ahead += [self._paths.behind[place]] if place in self._paths.behind else []
        return frozenset(reached - self._paths.behind.keys())

    def _closed(self, places: Iterable[int]) -> frozenset[int]:
        """Return what is reached without a character, within pieces."""
        reached = set(places)
        ahead = list(reached)
        while ahead:
            for place in self._paths.silent.get(ahead.pop(), ()):
                self._work.add()
                if place not in reached:
                    reached.add(place)
                    ahead.append(place)
        return frozenset(reached)

    def _ways(self, state: Iterable[int]) -> dict[int, list[int]]:
        """Return where each kind of characters leads, by kind."""
        ways: dict[int, list[int]] = defaultdict(list)
        for place in state:
            for ranges, after in self._paths.spoken.get(place, ()):
                for kind in self._kinds[ranges]:
                    self._work.add()
                    ways[kind].append(after)
        return ways


def _kinds_of_characters(every: Collection[Ranges], work: Work) -> dict[Ranges, tuple[int, ...]]:
    """Return kinds of characters that no ranges tell apart, by the ranges that hold them."""
    cuts = {end for ranges in every for first, last in ranges for end in (first, last + 1)}
    if len(cuts) > _MAX_CUTS:
        cuts = {cut for cut in cuts if cut < _ASCII_END} | {_ASCII_END}
    ordered = sorted({0} | cuts)
    holders: dict[int, list[int]] = defaultdict(list)
    for number, ranges in enumerate(every):
        held = {
            part
            for first, last in ranges
            for part in range(bisect_right(ordered, first) - 1, bisect_right(ordered, last))
        }
        work.add(len(held))
        for part in held:
            holders[part].append(number)
    kinds: dict[tuple[int, ...], int] = {}
    of_ranges: dict[int, set[int]] = defaultdict(set)
    for held_by in holders.values():
        kind = kinds.setdefault(tuple(held_by), len(kinds))
        for number in held_by:
            of_ranges[number].add(kind)
    return {ranges: tuple(of_ranges[number]) for number, ranges in enumerate(every)}
