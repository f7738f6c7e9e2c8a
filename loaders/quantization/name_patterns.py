"""Matches layers' names against a checkpoint's own patterns, in time that the checkpoint can't set.

The patterns come from a stranger's settings, and Python's `re` takes time exponential in a name's
length for some of them, as `(a+)+$`. Here a pattern becomes a machine that takes one step for each
character of a name. It answers as `re.match` does, for what such patterns are made of: characters,
classes, groups, `|`, `* + ? {2,3}`, `^` and `$`. Looking ahead or behind, references back and flags
are refused by name. Numbers, lengths and the work of a whole checkpoint are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loaders.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

# A rule for each layer of the largest models, by its whole name, is below all of these.
MAX_PATTERNS = 4096
MAX_PATTERN_CHARACTERS = 1000
MAX_NAME_CHARACTERS = 512
_MAX_DEPTH = 20  # of groups in groups
_MAX_NODES = 4000  # of one pattern, with what `{2,3}` repeats
_MAX_ALL_NODES = 300_000
# Of all names against all patterns. 280 layers against 560 patterns of auto-round take 5 million;
# 20 million take 1.5 to 4 s on one core (November 2026).
_MAX_STEPS = 20_000_000
_STATE_STEPS = 50  # that a new state counts as: it takes time, and some 500 bytes
_CLASSES = "dws"


class NamePatterns:
    """Patterns in their order; the first that matches a name counts.

    Raises CheckpointError where one cannot be read, or there are too many.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = tuple(patterns)
        if len(self._patterns) > MAX_PATTERNS:
            raise CheckpointError(
                f"the quantisation has {len(self._patterns)} rules; at most {MAX_PATTERNS} are read"
            )
        self._machines: list[_Machine] = []
        nodes_left = _MAX_ALL_NODES
        for pattern in self._patterns:
            self._machines.append(_Machine(pattern))
            nodes_left -= self._machines[-1].num_nodes
            if nodes_left < 0:
                raise CheckpointError(
                    f"the quantisation's {len(self._patterns)} rules are too long together"
                )
        self._known: dict[str, str | None] = {}
        self._steps = 0

    def find(self, name: str) -> str | None:
        """Return the first pattern that matches from the name's start, None where none does."""
        if name not in self._known:
            if len(name) > MAX_NAME_CHARACTERS:
                raise CheckpointError(
                    f"the layer {name[:60]!r}… has a name of {len(name)} characters; at most"
                    f" {MAX_NAME_CHARACTERS} are compared with the quantisation's rules"
                )
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> str | None:
        for pattern, machine in zip(self._patterns, self._machines, strict=True):
            found, steps = machine.matches(name)
            self._steps += steps
            if self._steps > _MAX_STEPS:
                raise CheckpointError(
                    f"the quantisation's {len(self._patterns)} rules are too many or too complex"
                    " for this checkpoint's layers; name layers by shorter patterns"
                )
            if found:
                return pattern
        return None


def check_pattern(pattern: str) -> None:
    """Raise CheckpointError, with the reason, for a pattern that is not read here."""
    _Machine(pattern)


@dataclass(frozen=True, slots=True)
class _Chars:
    """One character out of some, or of all others."""

    ranges: tuple[tuple[str, str], ...]
    classes: str = ""  # letters of \\d, \\w, \\s, \\D, \\W, \\S
    is_negated: bool = False

    def holds(self, char: str) -> bool:
        found = any(low <= char <= high for low, high in self.ranges)
        return (found or any(_in_class(char, one) for one in self.classes)) != self.is_negated


def _in_class(char: str, letter: str) -> bool:
    match letter.lower():
        case "d":
            found = char.isdecimal()
        case "w":
            found = char.isalnum() or char == "_"
        case _:
            found = char.isspace()
    return found != letter.isupper()


@dataclass(frozen=True, slots=True)
class _Edge:
    """The name's start or end."""

    is_start: bool


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Part, ...]


@dataclass(frozen=True, slots=True)
class _Either:
    options: tuple[_Part, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: _Part
    least: int
    most: int | None  # None: any number


_Part = _Chars | _Edge | _Sequence | _Either | _Repeat

_ANY = _Chars((("\n", "\n"),), is_negated=True)


class _Parser:
    """Reads a pattern once, from left to right."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN_CHARACTERS:
            raise CheckpointError(
                f"the pattern {pattern[:60]!r}… has {len(pattern)} characters; at most"
                f" {MAX_PATTERN_CHARACTERS} are read"
            )
        self._text = pattern
        self._at = 0

    def parse(self) -> _Part:
        found = self._either(0)
        if self._at < len(self._text):
            raise self._wrong("a ) without its (")
        return found

    def _wrong(self, reason: str) -> CheckpointError:
        return CheckpointError(f"the pattern {self._text[:200]!r} is not read here: {reason}")

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise self._wrong("it ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _either(self, depth: int) -> _Part:
        if depth > _MAX_DEPTH:
            raise self._wrong(f"groups in groups more than {_MAX_DEPTH} deep")
        options = [self._sequence(depth)]
        while self._take("|"):
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else _Either(tuple(options))

    def _sequence(self, depth: int) -> _Part:
        parts: list[_Part] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeated(self._one(depth)))
        return _Sequence(tuple(parts))

    def _one(self, depth: int) -> _Part:
        char = self._next()
        match char:
            case "(":
                return self._group(depth)
            case "[":
                return self._set()
            case ".":
                return _ANY
            case "^" | "$":
                return _Edge(is_start=char == "^")
            case "\\":
                return self._escaped()
            case "*" | "+" | "?":
                raise self._wrong(f"nothing before the {char} to repeat")
        return _Chars(((char, char),))

    def _group(self, depth: int) -> _Part:
        if self._take("?P<"):
            while (char := self._next()) != ">":
                if not (char.isalnum() or char == "_"):
                    raise self._wrong("a group with an odd name")
        elif not self._take("?:") and self._take("?"):
            raise self._wrong("of groups with (? only (?: and (?P<name> are, no looking ahead")
        found = self._either(depth + 1)
        if not self._take(")"):
            raise self._wrong("a ( without its )")
        return found

    def _escaped(self) -> _Part:
        char = self._next()
        if char in "AZ":
            return _Edge(is_start=char == "A")
        return self._escaped_chars(char)

    def _escaped_chars(self, char: str) -> _Chars:
        if char.lower() in _CLASSES:
            return _Chars((), classes=char)
        if char.isascii() and char.isalnum():
            raise self._wrong(f"the escape \\{char}")
        return _Chars(((char, char),))

    def _set(self) -> _Chars:
        is_negated = self._take("^")
        ranges: list[tuple[str, str]] = []
        classes = ""
        while not (ranges or classes) or not self._take("]"):  # a ] that comes first is meant
            low = self._member()
            if low.classes:
                classes += low.classes
                continue
            start = end = low.ranges[0][0]
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                high = self._member()
                if high.classes or high.ranges[0][0] < start:
                    raise self._wrong("a range in [] that ends before it begins")
                end = high.ranges[0][0]
            ranges.append((start, end))
        return _Chars(tuple(ranges), classes, is_negated)

    def _member(self) -> _Chars:
        char = self._next()
        return self._escaped_chars(self._next()) if char == "\\" else _Chars(((char, char),))

    def _repeated(self, part: _Part) -> _Part:
        limits = self._limits()
        if limits is None:
            return part
        if isinstance(part, _Edge):
            raise self._wrong("a start or end that is repeated")
        if self._take("+"):
            raise self._wrong("a repetition that gives nothing back")
        self._take("?")  # as few as do: the same, where only a match counts
        if self._limits() is not None:
            raise self._wrong("a repetition of a repetition")
        return _Repeat(part, *limits)

    def _limits(self) -> tuple[int, int | None] | None:
        for sign, limits in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return limits
        return self._counted() if self._text.startswith("{", self._at) else None

    def _counted(self) -> tuple[int, int | None] | None:
        """Read {2}, {2,}, {,3} or {2,3}; anything else after a { is meant as it stands."""
        inside, brace, _ = self._text[self._at + 1 :].partition("}")
        least, comma, most = inside.partition(",")
        numbers = [number for number in (least, most) if number]
        is_count = brace and all(n.isascii() and n.isdecimal() for n in numbers)
        if not is_count or not (numbers or comma):
            return None
        if any(len(number) > 4 for number in numbers):
            raise self._wrong("a repetition of more than 9999 times")
        self._at += len(inside) + 2
        low = int(least or 0)
        high = int(most) if most else None if comma else low
        if high is not None and high < low:
            raise self._wrong("a repetition whose end is below its start")
        return low, high


@dataclass(slots=True)
class _Node:
    """A place in a pattern: a character that leads on, or ways that need none."""

    chars: _Chars | None
    edge: _Edge | None
    following: list[int]


@dataclass(frozen=True, slots=True)
class _State:
    """All places that a name's beginning leads to."""

    nodes: tuple[int, ...]  # that wait for a character
    is_match: bool  # whatever follows
    is_match_at_end: bool
    cost: int  # steps that it took to find


class _Machine:
    """One pattern, as places and the ways between them; states are made when first reached."""

    _MATCH = 0

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._nodes: list[_Node] = [_Node(None, None, [])]
        self._num_built = 0
        self._start = self._build(_Parser(pattern).parse(), self._MATCH)
        self._first: _State | None = None
        self._ways: dict[tuple[int, ...], dict[str, _State]] = {}

    @property
    def num_nodes(self) -> int:
        return len(self._nodes)

    def matches(self, name: str) -> tuple[bool, int]:
        """Tell whether the pattern matches from the name's start, and the steps that it took."""
        if not name:
            return self._reach([self._start], at_start=True).is_match_at_end, 1
        if self._first is None:
            self._first = self._reach([self._start], at_start=True)
        state, steps = self._first, 1
        for char in name:
            if state.is_match or not state.nodes:
                break
            ways = self._ways.setdefault(state.nodes, {})
            steps += 1
            if char not in ways:
                reached = [n for n in state.nodes if self._leads(n, char)]
                ways[char] = self._reach([self._nodes[n].following[0] for n in reached])
                steps += len(state.nodes) + ways[char].cost
            state = ways[char]
        else:
            return state.is_match or state.is_match_at_end, steps
        return state.is_match, steps

    def _leads(self, node: int, char: str) -> bool:
        chars = self._nodes[node].chars
        return chars is not None and chars.holds(char)

    def _reach(self, starts: list[int], *, at_start: bool = False) -> _State:
        """Follow all ways that need no character."""
        before_end = self._closure(starts, at_start=at_start, at_end=False)
        at_end = self._closure(starts, at_start=at_start, at_end=True)
        waiting = sorted(n for n in before_end if self._nodes[n].chars is not None)
        cost = _STATE_STEPS + 4 * (len(before_end) + len(at_end))
        return _State(tuple(waiting), self._MATCH in before_end, self._MATCH in at_end, cost)

    def _closure(self, starts: list[int], *, at_start: bool, at_end: bool) -> set[int]:
        found: set[int] = set()
        left = list(starts)
        while left:
            number = left.pop()
            if number in found:
                continue
            found.add(number)
            node = self._nodes[number]
            is_open = node.edge is None or (at_start if node.edge.is_start else at_end)
            if node.chars is None and is_open:
                left += node.following
        return found

    def _build(self, part: _Part, following: int) -> int:
        """Add a part's places before the one that follows; return the first of them."""
        self._num_built += 1  # a part without any place may be repeated, too
        if self._num_built > 2 * _MAX_NODES:
            raise self._too_long()
        match part:
            case _Chars():
                return self._add(_Node(part, None, [following]))
            case _Edge():
                return self._add(_Node(None, part, [following]))
            case _Sequence():
                for one in reversed(part.parts):
                    following = self._build(one, following)
                return following
            case _Either():
                ways = [self._build(one, following) for one in part.options]
                return self._add(_Node(None, None, ways))
        return self._build_repeat(part, following)

    def _build_repeat(self, repeat: _Repeat, following: int) -> int:
        first = following
        if repeat.most is None:
            first = self._add(_Node(None, None, [following]))
            self._nodes[first].following.append(self._build(repeat.part, first))
        else:
            for _ in range(repeat.most - repeat.least):
                first = self._add(_Node(None, None, [self._build(repeat.part, first), following]))
        for _ in range(repeat.least):
            first = self._build(repeat.part, first)
        return first

    def _add(self, node: _Node) -> int:
        if len(self._nodes) >= _MAX_NODES:
            raise self._too_long()
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _too_long(self) -> CheckpointError:
        return CheckpointError(
            f"the pattern {self._pattern[:200]!r} is not read here: it repeats too much"
        )
