"""Looks through long texts in pieces, between which the interpreter is free for others.

One call of a regular expression keeps Python's lock until it returns: one for control pieces took
2.3 s for 4 MB of "<|" (2026-11), in which no other request would have been answered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_PIECE = 16 * 1024  # characters; 10 ms at the worst pace that was seen


@dataclass(frozen=True, slots=True)
class TextPattern:
    """An expression whose matches depend on few characters."""

    expression: re.Pattern[str]
    reach: int  # characters from a match's beginning on that it looks at

    def is_in(self, text: str) -> bool:
        """Whether a text holds a match."""
        return next(self._find(text), None) is not None

    def sub(self, change: Callable[[str], str], text: str) -> str:
        """Return the text with each match changed."""
        parts: list[str] = []
        done = 0
        for found in self._find(text):
            parts += (text[done : found.start()], change(found[0]))
            done = found.end()
        if not parts:
            return text
        parts.append(text[done:])
        return "".join(parts)

    def _find(self, text: str) -> Iterator[re.Match[str]]:
        start = 0
        while start < len(text):
            end = start + _PIECE
            following = end
            for found in self.expression.finditer(text, start, end + self.reach):
                if found.start() >= end:
                    break
                yield found
                following = max(following, found.end())
            start = following


def characters_among(codes: range, texts: Iterable[str]) -> set[str]:
    """Return the characters of these code points that some of the texts hold."""
    one = re.compile(f"[{re.escape(chr(codes[0]))}-{re.escape(chr(codes[-1]))}]")
    found: set[str] = set()
    for text in texts:
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE]
            if not piece.isascii():
                found.update(one.findall(piece))
    return found
