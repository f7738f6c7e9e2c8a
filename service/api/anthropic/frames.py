"""The events of a streamed message.

`message_start` tells how many tokens of the prompt were cached, which is known with the first token
of the answer; so it is sent with that, and pings before it.

What a token adds is put together from bytes that are made once a block. The models in
`service.api.anthropic.answers` are what the events must equal; tests compare them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.outputs import FinishReason
from service.api.anthropic.answers import (
    SIGNATURE,
    AnswerBlock,
    AnswerText,
    AnswerThinking,
    AnswerToolUse,
    BlockDelta,
    BlockStart,
    BlockStop,
    MessageDelta,
    MessageStart,
    MessageStop,
    SignatureDelta,
    new_message_id,
    usage_of,
    whole_message,
)
from service.api.anthropic.dialogue import tool_use_id
from service.api.error_responses import anthropic_error_body
from service.api.json_encoding import encode_json, encode_text
from service.tools.turn_events import (
    CallArguments,
    CallBegin,
    ReasoningPiece,
    TextPiece,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from service.api.anthropic.answers import AnsweredMessage, AnswerShape, Ending
    from service.serving.choice_reader import TextDelta
    from service.serving.generation import CompleteChoice, Generation
    from service.tools.turn_events import TurnEvent

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_AFTER = b"}}\n\n"


class MessageWriter:
    """Writes the answer to one request."""

    def __init__(self, shape: AnswerShape) -> None:
        self._shape = shape

    def whole(self, generation: Generation, choices: Sequence[CompleteChoice]) -> AnsweredMessage:
        """Return an answer that is not streamed."""
        return whole_message(self._shape, generation, choices)

    def frames(self, generation: Generation) -> MessageFrames:
        """Return the frames of an answer that is streamed."""
        return MessageFrames(self._shape, generation)


class MessageFrames:
    """Makes the server-sent events of one answer."""

    keep_alive = PING

    def __init__(self, shape: AnswerShape, generation: Generation) -> None:
        self._shape = shape
        self._generation = generation
        self._reader = shape.new_reader()
        self._has_begun = False
        self._ending: Ending | None = None
        self._index = -1  # of the block that is open, or was last
        # Of the block that is open: the kind of its pieces, and what stands before each.
        self._open: type[TurnEvent] | None = None
        self._before = b""

    def start(self, index: int) -> bytes:  # noqa: ARG002 - there is one
        """Return what opens the answer: nothing yet."""
        return b""

    def delta(self, delta: TextDelta) -> bytes:
        """Return the events of one delta, before the first one's what begins the message."""
        frames = b"" if self._has_begun else self._begin()
        for event in self._reader.push(delta.text):
            frames += self._event(event)
        reason = delta.finish_reason
        if reason is not None:
            for event in self._reader.flush(is_cut=reason is FinishReason.LENGTH):
                frames += self._event(event)
            frames += self._close()
            self._ending = self._shape.ending(reason, delta.stop_reason, self._reader.num_calls)
        return frames

    def end(self) -> bytes:
        """Return what closes the stream once the answer has ended."""
        if self._ending is None:
            raise RuntimeError("the answer has not ended")
        usage = usage_of(self._generation.usage)
        last = MessageDelta(type="message_delta", delta=self._ending, usage=usage)
        return _frame(last) + _frame(MessageStop(type="message_stop"))

    def error(self, error: Exception) -> bytes:
        """Return what ends a stream that failed."""
        body = anthropic_error_body(error, self._shape.request_id)
        return b"event: error\ndata: " + encode_json(body).encode() + b"\n\n"

    def _begin(self) -> bytes:
        self._has_begun = True
        message = self._shape.message(new_message_id(), usage_of(self._generation.usage))
        return _frame(MessageStart(type="message_start", message=message))

    def _event(self, event: TurnEvent) -> bytes:
        if isinstance(event, TextPiece | ReasoningPiece):
            return self._piece(event, event.text)
        if isinstance(event, CallBegin):
            call = AnswerToolUse(
                type="tool_use", id=tool_use_id(event.id), name=event.name, input={}
            )
            return self._close() + self._start(CallArguments, call)
        if isinstance(event, CallArguments):
            return self._before + encode_text(event.text) + _AFTER if event.text else b""
        return self._close()

    def _piece(self, event: TextPiece | ReasoningPiece, text: str) -> bytes:
        if not text:
            return b""
        opened = b""
        if self._open is not type(event):
            opened = self._close() + self._start(type(event), _EMPTY[type(event)])
        return opened + self._before + encode_text(text) + _AFTER

    def _start(self, pieces: type[TurnEvent], block: AnswerBlock) -> bytes:
        self._index += 1
        self._open = pieces
        self._before = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":'
            % self._index
        ) + _DELTAS[pieces]
        start = BlockStart(type="content_block_start", index=self._index, content_block=block)
        return _frame(start)

    def _close(self) -> bytes:
        """End the block that is open, if one is."""
        if self._open is None:
            return b""
        frames = b""
        if self._open is ReasoningPiece:
            signature = SignatureDelta(type="signature_delta", signature=SIGNATURE)
            frames = _frame(
                BlockDelta(type="content_block_delta", index=self._index, delta=signature)
            )
        self._open = None
        return frames + _frame(BlockStop(type="content_block_stop", index=self._index))


_EMPTY: dict[type[TurnEvent], AnswerBlock] = {
    TextPiece: AnswerText(type="text", text=""),
    ReasoningPiece: AnswerThinking(type="thinking", thinking="", signature=""),
}
# How a block's pieces begin, by what they are.
_DELTAS: dict[type[TurnEvent], bytes] = {
    TextPiece: b'{"type":"text_delta","text":',
    ReasoningPiece: b'{"type":"thinking_delta","thinking":',
    CallArguments: b'{"type":"input_json_delta","partial_json":',
}


def _frame(event: BaseModel) -> bytes:
    body = event.model_dump_json(exclude_unset=True)
    name: str = event.type  # type: ignore[attr-defined]  # every event has one
    return f"event: {name}\ndata: {body}\n\n".encode()
