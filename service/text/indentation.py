"""Ends a text before its first line that is indented less than asked; knows strings only.

Whoever fills a gap inside a block wants that block alone: a line that begins further left is
already something else. What the gap's first line begins with stands before the gap, so only later
lines are looked at, and blank ones say nothing.
"""

from __future__ import annotations


class Indentation:
    """Cut a text stream before the first line with too few spaces and tabs at its beginning.

    A line's end is held back until its successor has begun, so that a text which is cut ends with
    its last good line, without a line end. Time is linear in the text.
    """

    def __init__(self, least: int) -> None:
        """least: spaces and tabs that each line but the first begins with, at least 1."""
        self.is_over = False  # a line was too far left; nothing more comes out
        self._least = least
        self._held: list[str] = []  # line ends and what follows them
        self._indent: int | None = None  # of the line that begins; None within a line

    def push(self, text: str) -> str:
        """Take more text; give what is safe to send now."""
        sent: list[str] = []
        for character in text:
            if self.is_over:
                break
            sent.append(self._take(character))
        return "".join(sent)

    def flush(self) -> str:
        """Give the rest, once the text has ended by itself."""
        rest = "".join(self._held)
        self._held.clear()
        return rest

    def _take(self, character: str) -> str:
        if character in "\r\n":
            self._held.append(character)
            if character == "\n":
                self._indent = 0
            return ""
        if self._indent is None:
            return self.flush() + character
        if character not in " \t":
            self.is_over = True
            self._held.clear()
            return ""
        self._held.append(character)
        self._indent += 1
        if self._indent < self._least:
            return ""
        self._indent = None
        return self.flush()
