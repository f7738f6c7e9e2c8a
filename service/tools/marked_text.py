"""Text up to a mark, such as the one that begins a call; what may still become it is held back.

White space around marks is nobody's text, so what ends a text is held back until more follows.
"""

from __future__ import annotations

SPACES = " \t\r\n"


class MarkedText:
    """Pass text on until a mark comes. Time is linear in the text, however it is cut."""

    def __init__(self, mark: str, *, drops_leading: bool = False) -> None:
        """mark: not empty. drops_leading: leave out white space at the beginning."""
        self._mark = mark
        self.is_at_beginning = drops_leading  # and nothing but white space has come
        self._spaces: list[str] = []  # held back, before `_partial`
        self._partial = ""  # of the mark, held back

    def push(self, text: str) -> tuple[str, str | None]:
        """Return the text that is safe, and what comes behind the mark; None before it came."""
        text = self._partial + text
        place = text.find(self._mark)
        if place >= 0:
            self._partial = ""
            return self._text(text[:place]), text[place + len(self._mark) :]
        held = _num_held(text, self._mark)
        end = len(text) - held
        self._partial = text[end:]
        return self._text(text[:end]), None

    def take_spaces(self) -> str:
        """Return the white space that is held back, and forget it."""
        held = "".join(self._spaces)
        self._spaces = []
        return held

    def flush(self) -> str:
        """Return all that is held back, once the text is at its end without a mark."""
        partial, self._partial = self._partial, ""
        return self._text(partial) + self.take_spaces()

    def _text(self, text: str) -> str:
        if self.is_at_beginning:
            text = text.lstrip(SPACES)
            self.is_at_beginning = not text
        kept = text.rstrip(SPACES)
        if not kept:
            if text:
                self._spaces.append(text)
            return ""
        before = self.take_spaces()
        if len(kept) < len(text):
            self._spaces.append(text[len(kept) :])
        return before + kept


def _num_held(text: str, mark: str) -> int:
    """Count the characters at the text's end that may become the mark."""
    most = min(len(mark) - 1, len(text))
    return next((size for size in range(most, 0, -1) if text.endswith(mark[:size])), 0)
