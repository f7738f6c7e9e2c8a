"""The frames of a streamed turn that may hold more than text: thoughts, and calls of tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from engine.outputs import FinishReason
from service.api.json_encoding import encode_json, encode_text
from service.api.openai.frames import OpenAIFrames
from service.tools.turn_events import CallArguments, CallBegin, ReasoningPiece, TextPiece

if TYPE_CHECKING:
    from service.api.openai.answers import Envelope
    from service.api.openai.frames import ChunkContents, ChunkShape
    from service.serving.choice_reader import TextDelta
    from service.serving.generation import Generation
    from service.serving.turns import PlannedTurn
    from service.tools.turn_events import TurnEvent
    from service.tools.turn_reader import TurnReader

FinishedBy = Literal["stop", "length", "tool_calls", "function_call"]


def finished_by(reason: FinishReason, num_calls: int, *, is_legacy: bool) -> FinishedBy:
    """Return OpenAI's word for why a turn ended; num_calls: the complete ones."""
    if reason is not FinishReason.STOP or not num_calls:
        return reason.value
    return "function_call" if is_legacy else "tool_calls"


class TurnFrames(OpenAIFrames):
    """Makes the server-sent events of turns, each event of a turn a chunk."""

    def __init__(
        self,
        shape: ChunkShape,
        envelope: Envelope,
        generation: Generation,
        contents: ChunkContents,
        turn: PlannedTurn,
        *,
        is_legacy: bool = False,
    ) -> None:
        """is_legacy: calls are told in the words of `functions`."""
        super().__init__(shape, envelope, generation, contents)
        self._turn = turn
        self._is_legacy = is_legacy
        self._readers: dict[int, TurnReader] = {}  # by choice

    def delta(self, delta: TextDelta) -> bytes:
        """Return the chunks of one delta: what is decided of its text, then its end."""
        reader = self._reader_of(delta.index)
        events = list(reader.push(delta.text))
        if delta.finish_reason is not None:
            events += reader.flush(is_cut=delta.finish_reason is FinishReason.LENGTH)
        bodies = [body for event in events if (body := self._body(event))]
        ids = self._ids(delta)
        if not bodies and (delta.tokens or (ids and delta.finish_reason is None)):
            bodies = [b"{}"]  # what is told of tokens comes with the token, not with its text
        logprobs, frames = self._logprobs(delta), b""
        for body in bodies:
            frames += self._opened(delta.index) + b'"delta":' + body + b',"logprobs":' + logprobs
            frames += b',"finish_reason":null' + self._closed(ids)
            logprobs, ids = b"null", b""
        if delta.finish_reason is not None:
            frames += self._opened(delta.index) + self._shape.end + b',"logprobs":null'
            frames += self._reason(delta) + self._closed(ids)
        return frames

    def _reader_of(self, index: int) -> TurnReader:
        reader = self._readers.get(index)
        if reader is None:
            reader = self._readers[index] = self._turn.new_reader()
        return reader

    def _finished_by(self, reason: FinishReason, index: int) -> str:
        num_calls = self._reader_of(index).num_calls
        return finished_by(reason, num_calls, is_legacy=self._is_legacy)

    def _body(self, event: TurnEvent) -> bytes:
        """Return an event as a delta; nothing for one that clients are not told."""
        match event:
            case TextPiece(text):
                return b'{"content":' + encode_text(text) + b"}"
            case ReasoningPiece(text):
                thought = encode_text(text)
                return b'{"reasoning_content":' + thought + b',"reasoning":' + thought + b"}"
            case CallBegin(index, call_id, name):
                named = encode_json({"name": name, "arguments": ""}).encode()
                identified = encode_json({"id": call_id, "type": "function"}).encode()
                return self._call(index, named, b"," + identified[1:-1])
            case CallArguments(index, text):
                return self._call(index, b'{"arguments":' + encode_text(text) + b"}")
        return b""

    def _call(self, index: int, function: bytes, identified: bytes = b"") -> bytes:
        if self._is_legacy:
            return b'{"function_call":' + function + b"}"
        place = str(index).encode()
        before = b'{"tool_calls":[{"index":' + place + identified + b',"function":'
        return before + function + b"}]}"
