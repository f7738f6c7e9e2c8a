"""Tells a model's thoughts from its answer, and leaves the answer to another reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.tools.marked_text import SPACES, MarkedText
from service.tools.turn_events import ReasoningPiece

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.tools.turn_events import TurnEvent
    from service.tools.turn_reader import TurnReader


class ReasoningReader:
    """Reads thoughts between two marks at the beginning of a turn, without the white space around.

    Thoughts that are not closed go on to the end, as all of them that was written.
    """

    def __init__(self, answer: TurnReader, marks: tuple[str, str], *, is_open: bool) -> None:
        """is_open: the prompt ends with the opening mark."""
        self._answer = answer
        self._opening, closing = marks
        self._thoughts = MarkedText(closing, drops_leading=True)
        self._held: list[str] = []  # of what may become the opening mark
        self._state: Callable[[str], Sequence[TurnEvent]]
        self._state = self._in_thoughts if is_open else self._at_start

    @property
    def num_calls(self) -> int:
        """Count the calls that are complete."""
        return self._answer.num_calls

    def push(self, text: str) -> Sequence[TurnEvent]:
        """Return what this text adds, as far as it is decided."""
        return self._state(text) if text else ()

    def flush(self, *, is_cut: bool) -> Sequence[TurnEvent]:
        """Return the rest, once the text is at its end; is_cut: by length, not by the model."""
        rest: list[TurnEvent] = []
        if self._state == self._in_thoughts:
            rest += _thought(self._thoughts.flush().rstrip(SPACES))
        elif self._state == self._at_start:
            rest += self._answer.push("".join(self._held))
        return [*rest, *self._answer.flush(is_cut=is_cut)]

    def _at_start(self, text: str) -> Sequence[TurnEvent]:
        begun = self._held.pop() if self._held and self._held[-1].strip(SPACES) else ""
        text = begun + text
        rest = text.lstrip(SPACES)
        if rest.startswith(self._opening):
            self._held = []
            self._state = self._in_thoughts
            return self.push(rest.removeprefix(self._opening))
        if self._opening.startswith(rest):
            self._held += [text[: len(text) - len(rest)], *([rest] if rest else [])]
            return ()
        text = "".join(self._held) + text
        self._held = []
        self._state = self._answer.push
        return self.push(text)

    def _in_thoughts(self, text: str) -> Sequence[TurnEvent]:
        thought, rest = self._thoughts.push(text)
        if rest is None:
            return _thought(thought)
        self._state = self._before_answer
        return [*_thought(thought), *self.push(rest)]

    def _before_answer(self, text: str) -> Sequence[TurnEvent]:
        text = text.lstrip(SPACES)
        if text:
            self._state = self._answer.push
        return self.push(text)


def _thought(text: str) -> list[TurnEvent]:
    return [ReasoningPiece(text)] if text else []
