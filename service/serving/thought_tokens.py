"""Counts the tokens of a model's thoughts: those that begin between the marks around them.

Marks are looked for in the bytes that tokens stand for, as `service.tools.reasoning_reader` looks
for them in the text: whether they are pieces of the vocabulary or plain text makes no difference.
Where a token holds the end of a mark and the beginning of what follows, it counts as the mark's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.tools.marked_text import SPACES

if TYPE_CHECKING:
    from collections.abc import Callable

_SPACES = SPACES.encode()


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """The marks around thoughts, as they are written."""

    opening: str
    closing: str
    is_open: bool  # the prompt ends with the opening one


class ThoughtTokens:
    """Count what stands between the marks at the beginning of an answer; the marks do not count."""

    def __init__(self, marks: ThoughtMarks, bytes_of: Callable[[int], bytes]) -> None:
        """bytes_of: what a token adds to the text that is read; nothing for one that is hidden."""
        self.num_tokens = 0
        self.is_over = False  # no further token can be one of thoughts
        self._opening, self._closing = marks.opening.encode(), marks.closing.encode()
        self._bytes_of = bytes_of
        self._is_open = marks.is_open
        self._held = b""  # what may be the beginning of the mark that is looked for
        self._num_bytes = 0  # of thoughts before that
        self._undecided: list[int] = []  # where tokens began that may be the closing mark's

    def push(self, token_id: int) -> None:
        """Take the next token, but not one that ends the answer."""
        if self.is_over:
            return
        new = self._bytes_of(token_id)
        if self._is_open:
            self._undecided.append(self._num_bytes + len(self._held))
            if new and not self._held and self._closing[0] not in new:  # nearly always
                self._num_bytes += len(new)
                self._decide()
            else:
                self._think(new)
            return
        begun = (self._held + new).lstrip(_SPACES)
        if begun.startswith(self._opening):
            self._is_open, self._held = True, b""
            self._think(begun.removeprefix(self._opening))
        else:
            self._held = begun
            self.is_over = not self._opening.startswith(begun)

    def flush(self) -> None:
        """Count what is undecided, once the answer is at its end: the thoughts were not closed."""
        self._decide()
        self.is_over = True

    def _decide(self) -> None:
        self.num_tokens += len(self._undecided)
        self._undecided.clear()

    def _think(self, new: bytes) -> None:
        text = self._held + new
        place = text.find(self._closing)
        self.is_over = place >= 0
        end = place if self.is_over else len(text) - _num_held(text, self._closing)
        self._num_bytes += end
        self._held = text[end:]
        undecided = [] if self.is_over else [n for n in self._undecided if n >= self._num_bytes]
        self.num_tokens += sum(begin < self._num_bytes for begin in self._undecided)
        self._undecided = undecided


def _num_held(text: bytes, mark: bytes) -> int:
    """Count the bytes at the text's end that may become the mark."""
    most = min(len(mark) - 1, len(text))
    return next((size for size in range(most, 0, -1) if text.endswith(mark[:size])), 0)
