"""What an assistant's turn consists of, in the order in which it comes."""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class TextPiece(msgspec.Struct, frozen=True, gc=False):
    """More of the text that people read."""

    text: str


class ReasoningPiece(msgspec.Struct, frozen=True, gc=False):
    """More of the model's thoughts, without their marks."""

    text: str


class CallBegin(msgspec.Struct, frozen=True, gc=False):
    """A call of a tool begins; its arguments follow."""

    index: int  # of the call in its turn, from 0
    id: str  # made here, of the turn's own; begins with "call_"
    name: str


class CallArguments(msgspec.Struct, frozen=True, gc=False):
    """More of the text of a call's arguments; joined, they are one JSON object."""

    index: int
    text: str


class CallEnd(msgspec.Struct, frozen=True, gc=False):
    """A call is complete. One that was cut off has no end, and is no call."""

    index: int


TurnEvent: TypeAlias = TextPiece | ReasoningPiece | CallBegin | CallArguments | CallEnd
