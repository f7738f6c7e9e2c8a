"""Asks for one answer, shows it, and says on standard error what is to be said of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from service.commands.download_options import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.client.answer import AnswerPiece, TokenUsage
    from service.client.server import Server
    from service.commands.conversation.answer_view import AnswerView


class AnswerSoFar:
    """What has come of an answer."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self.usage: TokenUsage | None = None
        self._asked_at = time.monotonic()
        self._first_at: float | None = None
        self._last_at = self._asked_at

    def add(self, piece: AnswerPiece) -> None:
        """Take in a piece."""
        self.text += piece.text
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.usage = piece.usage or self.usage
        if piece.text or piece.reasoning:
            self._last_at = time.monotonic()
            self._first_at = self._first_at or self._last_at

    def describe_usage(self) -> str:
        """Return tokens and speed in one line."""
        if self.usage is None:
            return "the server did not tell how many tokens it took"
        counts = f"{self.usage.prompt_tokens} tokens read, {self.usage.completion_tokens} written"
        if self._first_at is None:
            return counts
        first = f"{counts}; the first after {self._first_at - self._asked_at:.2f} s"
        between_s = self._last_at - self._first_at
        if not between_s:
            return first
        return f"{first}, then {(self.usage.completion_tokens - 1) / between_s:.1f} a second"


def show_answer(
    server: Server, path: str, body: Mapping[str, object], view: AnswerView, answer: AnswerSoFar
) -> None:
    """Ask for an answer and show it; what has come of it is in `answer`, however this ends.

    Raises ClientError, and KeyboardInterrupt where the user stops it.
    """
    with server.answer(path, body) as pieces:
        if pieces.ignored_fields:
            say(f"the server takes no notice of {', '.join(pieces.ignored_fields)}")
        try:
            for piece in pieces:
                answer.add(piece)
                view.show(piece)
        finally:
            view.end()
    view.check()


def tell_end(answer: AnswerSoFar, *, usage: bool) -> None:
    """Say what the text itself does not: that it was cut, and what it took."""
    if answer.finish_reason == "length":
        say("the answer was cut at its longest; --max-tokens allows more")
    if usage:
        say(answer.describe_usage())
