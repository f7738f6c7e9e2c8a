"""How an API writes its answers: whole, or as the frames of a stream of server-sent events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from service.serving.choice_reader import TextDelta
    from service.serving.generation import CompleteChoice, Generation

# One line without an empty one of its own: the next event ends it. Followed by an empty line it is
# an event without data, at which several clients break off with a JSON error.
KEEP_ALIVE = b": keep-alive\n"
# What tells of more tokens is written beside the event loop: 30 000 of a prompt, with 20 likeliest
# ones each, take 5 s (2026-11).
MAX_REPORTED_AT_ONCE = 512


class Frames(Protocol):
    """The frames of one answer."""

    keep_alive: bytes  # after a while of silence

    def start(self, index: int) -> bytes:
        """Return what opens a choice; possibly nothing."""

    def delta(self, delta: TextDelta) -> bytes:
        """Return the frames of one delta; possibly none."""

    def end(self) -> bytes:
        """Return what closes the stream once every choice has ended."""

    def error(self, error: Exception) -> bytes:
        """Return what closes a stream that failed."""


class AnswerWriter(Protocol):
    """Writes the answer to one request."""

    def whole(self, generation: Generation, choices: Sequence[CompleteChoice]) -> BaseModel:
        """Return the body of an answer that is not streamed."""

    def frames(self, generation: Generation) -> Frames:
        """Return the frames of an answer that is streamed."""
