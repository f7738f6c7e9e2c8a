"""Reads an assistant's turn out of the text that a model writes, piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from service.tools.turn_events import TextPiece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.tools.turn_events import TurnEvent


class TurnReader(Protocol):
    """Reads one turn. However its text is cut, the events say the same in sum."""

    def push(self, text: str) -> Sequence[TurnEvent]:
        """Return what this text adds, as far as it is decided."""

    def flush(self, *, is_cut: bool) -> Sequence[TurnEvent]:
        """Return the rest, once the text is at its end; is_cut: by length, not by the model."""

    @property
    def num_calls(self) -> int:
        """Count the calls that are complete."""


class PlainReader:
    """Reads a turn that is nothing but text."""

    num_calls = 0

    def push(self, text: str) -> Sequence[TurnEvent]:
        """Return the text."""
        return (TextPiece(text),) if text else ()

    def flush(self, *, is_cut: bool) -> Sequence[TurnEvent]:  # noqa: ARG002
        """Return nothing: no text is held back."""
        return ()
