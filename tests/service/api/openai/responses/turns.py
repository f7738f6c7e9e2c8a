"""Turns as readers tell them, without a model that writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.tools.turn_events import (
    CallArguments,
    CallBegin,
    CallEnd,
    ReasoningPiece,
    TextPiece,
    TurnEvent,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# What a fake model writes for each event, so that scripts are texts: a mark, then the event's text.
MARKS = "<think>", "<say>", "<call>", "<args>", "<end>"


@dataclass
class MarkedReader:
    """Reads texts of marks and what belongs to them; holds a mark back until it is whole."""

    num_calls: int = 0
    _held: str = ""
    _mode: str = "<say>"
    _index: int = -1
    _events: list[TurnEvent] = field(default_factory=list)

    def push(self, text: str) -> Sequence[TurnEvent]:
        self._events = []
        self._held += text
        while self._held:
            mark = next((one for one in MARKS if self._held.startswith(one)), None)
            if mark is not None:
                self._held = self._held.removeprefix(mark)
                self._begin(mark)
            elif any(one.startswith(self._held) for one in MARKS):
                break
            elif self._mode == "<call>":
                name, found, rest = self._held.partition("<args>")
                if not found:
                    break
                self._index += 1
                self._events.append(CallBegin(self._index, f"call_{self._index}", name))
                self._mode, self._held = "<args>", rest
            else:
                end = self._held.find("<", 1)
                piece = self._held if end < 0 else self._held[:end]
                self._held = self._held[len(piece) :]
                self._tell(piece)
        return self._events

    def flush(self, *, is_cut: bool) -> Sequence[TurnEvent]:
        self._events = []
        if self._held and self._mode != "<call>":
            self._tell(self._held)
        return self._events

    def _begin(self, mark: str) -> None:
        if mark == "<end>":
            self._events.append(CallEnd(self._index))
            self.num_calls += 1
            mark = "<say>"
        self._mode = mark

    def _tell(self, text: str) -> None:
        if self._mode == "<say>":
            self._events.append(TextPiece(text))
        elif self._mode == "<think>":
            self._events.append(ReasoningPiece(text))
        else:
            self._events.append(CallArguments(self._index, text))
