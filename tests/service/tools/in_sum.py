"""What the events of a turn say in sum, however many there were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.tools.turn_events import (
    CallArguments,
    CallBegin,
    CallEnd,
    ReasoningPiece,
    TextPiece,
    TurnEvent,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.tools.turn_reader import TurnReader


def read(reader: TurnReader, pieces: Iterable[str], *, is_cut: bool = False) -> list[TurnEvent]:
    """Every event of a text that comes in pieces."""
    events = [event for piece in pieces for event in reader.push(piece)]
    return [*events, *reader.flush(is_cut=is_cut)]


def in_sum(events: Sequence[TurnEvent]) -> list[tuple[Any, ...]]:
    """Texts joined; of a call ("call", index, name, arguments, whether it is complete)."""
    found: list[list[Any]] = []
    for event in events:
        match event:
            case TextPiece(text) | ReasoningPiece(text):
                kind = "text" if isinstance(event, TextPiece) else "reasoning"
                if found and found[-1][0] == kind:
                    found[-1][1] += text
                else:
                    found.append([kind, text])
            case CallBegin(index, _, name):
                found.append(["call", index, name, "", False])
            case CallArguments(index, text):
                if found and found[-1][:2] == ["call", index]:
                    found[-1][3] += text
                else:
                    found.append(["arguments", index, text])
            case CallEnd(index):
                if found and found[-1][:2] == ["call", index]:
                    found[-1][4] = True
    return [tuple(one) for one in found]
