"""A turn that has come to its end, as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.tools.calls import ToolCall
from service.tools.turn_events import (
    CallArguments,
    CallBegin,
    CallEnd,
    ReasoningPiece,
    TextPiece,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.tools.turn_reader import TurnReader


@dataclass(frozen=True, slots=True)
class WholeTurn:
    """What a turn consists of; of calls only those that are complete."""

    text: str
    reasoning: str
    calls: Sequence[ToolCall]


def read_whole(reader: TurnReader, written: str, *, is_cut: bool) -> WholeTurn:
    """Read a turn; is_cut: by length, not by the model."""
    texts: list[str] = []
    thoughts: list[str] = []
    begun: dict[int, CallBegin] = {}
    arguments: dict[int, list[str]] = {}
    calls: list[ToolCall] = []
    for event in (*reader.push(written), *reader.flush(is_cut=is_cut)):
        match event:
            case TextPiece(text):
                texts.append(text)
            case ReasoningPiece(text):
                thoughts.append(text)
            case CallBegin(index):
                begun[index], arguments[index] = event, []
            case CallArguments(index, text):
                arguments[index].append(text)
            case CallEnd(index):
                call = begun[index]
                calls.append(ToolCall(call.id, call.name, "".join(arguments[index])))
    return WholeTurn("".join(texts), "".join(thoughts), calls)
