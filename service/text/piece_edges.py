"""Finds where a control piece could come about between a user's text and what stands beside it.

Templates for tools write marks right at names and keys: `'<function=' + name + '>'`, `'<' + key +
'>'`. A name of "<|im_end|" or a key of "/s" holds no piece by itself, and would be a part of one
there. What a template writes at a text is taken to be punctuation, as in both examples.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_PUNCTUATION = re.compile(r"\W*")


class PieceEdges:
    """Knows what texts begin and end with that others could make a control piece of."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._beginnings: set[str] = set()  # of pieces; a text may end with one
        self._rests: set[str] = set()  # of pieces behind punctuation; a text may begin with one
        self._cores: set[str] = set()  # of pieces between punctuation; a text may be one
        for piece in pieces:
            self._learn(piece)
        self._beginning_lengths = sorted({len(text) for text in self._beginnings})
        self._rest_lengths = sorted({len(text) for text in self._rests})
        self._rest_starts = frozenset(text[0] for text in self._rests)

    def places(self, text: str) -> list[int]:
        """Give the places of characters without which no piece comes about at the text's ends."""
        if not text:
            return []
        length = len(text)
        found = [
            length - size
            for size in self._beginning_lengths
            if size <= length and text[length - size :] in self._beginnings
        ]
        if text in self._cores or self._begins_with_rest(text):
            found.append(0)
        return found

    def _begins_with_rest(self, text: str) -> bool:
        return text[0] in self._rest_starts and any(
            text[:size] in self._rests for size in self._rest_lengths
        )

    def _learn(self, piece: str) -> None:
        before = len(_punctuation_of(piece))
        behind = len(_punctuation_of(piece[::-1]))
        starts = range(1, min(before, len(piece) - 1) + 1)
        self._rests |= {piece[start:] for start in starts}
        ends = range(max(len(piece) - behind, 1), len(piece))
        self._cores |= {piece[start:end] for start in starts for end in ends if start < end}
        if before:  # words that are pieces ("user") are the ends of too many texts
            self._beginnings |= {piece[:end] for end in range(1, len(piece))}


def _punctuation_of(text: str) -> str:
    found = _PUNCTUATION.match(text)
    return found[0] if found else ""
