"""Scans one call, `{"name": …, "arguments": {…}}`, out of text that comes in any pieces.

The arguments are passed on as they come, character by character as the model wrote them. Whether
they are JSON is known at their end only; what could not become a call is found out at once.
"""

from __future__ import annotations

import enum
import json
import re
from typing import TYPE_CHECKING

from service.tools.marked_text import SPACES

if TYPE_CHECKING:
    from collections.abc import Collection

ARGUMENT_KEYS = ("arguments", "parameters")
MAX_HEADER_CHARS = 4096  # of keys and other values than the arguments; no call has more

# What may end a run of plain characters: in a string, and outside.
_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')


class JsonSpan:
    """Finds the end of an object, list or string that has begun; nothing else is looked at."""

    def __init__(self) -> None:
        self._closers: list[str] = []
        self._in_string = False
        self._is_escaped = False
        self.is_complete = False
        self.is_broken = False

    def take(self, text: str, start: int, stop: int) -> int:
        """Return where in the text, between two places, the value ends; stop where it does not."""
        position = start
        while position < stop:
            if self._is_escaped:
                self._is_escaped = False
                position += 1
                continue
            found = (_IN_STRING if self._in_string else _OUTSIDE).search(text, position, stop)
            if found is None:
                return stop
            position = found.end()
            self._meet(found[0])
            if self.is_complete or self.is_broken:
                return position
        return position

    def _meet(self, character: str) -> None:
        if character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._in_string = not self._in_string
            self.is_complete = not (self._in_string or self._closers)
        elif character in "{[":
            self._closers.append("}" if character == "{" else "]")
        elif self._closers and character == self._closers[-1]:
            self._closers.pop()
            self.is_complete = not self._closers
        else:
            self.is_broken = True


class _Step(enum.Enum):
    """What comes next."""

    OBJECT = enum.auto()
    KEY = enum.auto()
    COLON = enum.auto()
    VALUE = enum.auto()
    IN_VALUE = enum.auto()
    AFTER_VALUE = enum.auto()


class CallScanner:
    """Scans one call. Ask `name`, `is_complete` and `is_broken` after each `take`.

    name: once it is known, and is one of the tools'. Arguments that were written before the name
    come with it.
    """

    def __init__(self, names: Collection[str], name: str | None = None) -> None:
        """name: where it has come already, so that nothing but the arguments follows."""
        self._names = names
        self._is_bare = name is not None
        self.name = name
        self.is_complete = False
        self.is_broken = False
        self._step = _Step.OBJECT if name is None else _Step.VALUE
        # Of the value that comes; None while a key does.
        self._key = None if name is None else ARGUMENT_KEYS[0]
        self._span = JsonSpan()
        self._word: list[str] = []  # of a key, a name or another value, as it is written
        self._num_header = 0
        self._seen: set[str] = set()
        self._arguments: list[str] = []
        self._num_given = 0  # pieces of the arguments

    def take(self, text: str, start: int = 0) -> int:
        """Scan text from a place on; return where the call ends, is broken, or the text ends."""
        position = start
        while position < len(text) and not (self.is_complete or self.is_broken):
            if self._step is _Step.IN_VALUE:
                position = self._take_value(text, position)
            elif text[position] in SPACES or self._expect(text[position]):
                position += 1
                self._count(1)
        return position

    def new_arguments(self) -> str:
        """Return what was scanned of the arguments since; nothing before the name is known."""
        if self.name is None:
            return ""
        new = "".join(self._arguments[self._num_given :])
        self._num_given = len(self._arguments)
        return new

    def _expect(self, character: str) -> bool:
        """Take a character that is no white space; say whether it was taken.

        It is not where a value begins, which it is part of, nor where it cannot stand.
        """
        step = self._step
        if step is _Step.OBJECT and character == "{":
            self._step = _Step.KEY
        elif step is _Step.KEY and character == '"':
            self._begin_value(None)
            return False
        elif step is _Step.COLON and character == ":":
            self._step = _Step.VALUE
        elif step is _Step.VALUE and self._can_begin(character):
            self._begin_value(self._key)
            return False
        elif step is _Step.AFTER_VALUE and character == ",":
            self._step = _Step.KEY
        elif step is _Step.AFTER_VALUE and character == "}":
            self._end()
        else:
            self.is_broken = True
            return False
        return True

    def _can_begin(self, character: str) -> bool:
        if self._key in ARGUMENT_KEYS:
            return character == "{"
        # A number or a word in a call is none of ours; it would have no end of its own.
        return character == '"' or (self._key != "name" and character in "{[")

    def _begin_value(self, key: str | None) -> None:
        self._key = key
        self._step = _Step.IN_VALUE
        self._span = JsonSpan()
        self._word = []

    def _take_value(self, text: str, start: int) -> int:
        stop = len(text)
        if (
            self._key not in ARGUMENT_KEYS
        ):  # wherever the text is cut, the bound is met at one place
            stop = min(stop, start + MAX_HEADER_CHARS - self._num_header)
        end = self._span.take(text, start, stop)
        piece = text[start:end]
        if self._key in ARGUMENT_KEYS:
            self._arguments.append(piece)
        else:
            self._word.append(piece)
            self._count(len(piece))
        if self._span.is_broken:
            self.is_broken = True
        if self._span.is_complete and not self.is_broken:
            self._end_value()
        return end

    def _end_value(self) -> None:
        if self._key in ARGUMENT_KEYS:
            self.is_broken = not _is_object("".join(self._arguments))
            self.is_complete = self._is_bare and not self.is_broken
            self._step = _Step.AFTER_VALUE
        elif self._key is None:
            self._key = _string(self._word)
            kind = "arguments" if self._key in ARGUMENT_KEYS else self._key
            self.is_broken = kind is None or kind in self._seen
            self._seen.add(kind or "")
            self._step = _Step.COLON
        else:
            if self._key == "name":
                name = _string(self._word)
                self.name = name if name in self._names else None
                self.is_broken = self.name is None
            self._step = _Step.AFTER_VALUE

    def _end(self) -> None:
        self.is_complete = self.name is not None and "arguments" in self._seen
        self.is_broken = not self.is_complete

    def _count(self, num_characters: int) -> None:
        self._num_header += num_characters
        if self._num_header >= MAX_HEADER_CHARS:
            self.is_broken = True


def _string(pieces: list[str]) -> str | None:
    try:
        found = json.loads("".join(pieces))
    except ValueError:
        return None
    return found if isinstance(found, str) else None


def _is_object(text: str) -> bool:
    try:
        # Python would refuse to make a number of many digits.
        found = json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict)


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
