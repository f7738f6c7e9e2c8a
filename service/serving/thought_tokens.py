"""Counts the tokens of a model's thoughts, where their marks are pieces of its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """The ids of the marks around thoughts."""

    opening: int
    closing: int
    is_open: bool  # the prompt ends with the opening one


class ThoughtTokens:
    """Count what stands between the marks at the beginning of an answer; the marks do not count."""

    def __init__(self, marks: ThoughtMarks, is_blank: Callable[[int], bool]) -> None:
        """is_blank: whether a token is white space alone, which may stand before thoughts."""
        self.num_tokens = 0
        self._marks = marks
        self._is_blank = is_blank
        self._may_open = not marks.is_open
        self._is_open = marks.is_open

    @property
    def is_over(self) -> bool:
        """Whether no further token can be one of thoughts."""
        return not (self._may_open or self._is_open)

    def push(self, token_id: int) -> None:
        """Take the next token, but not one that ends the answer."""
        if self._is_open:
            self._is_open = token_id != self._marks.closing
            self.num_tokens += self._is_open
        elif self._may_open:
            self._is_open = token_id == self._marks.opening
            self._may_open = not self._is_open and self._is_blank(token_id)
