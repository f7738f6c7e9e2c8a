"""The frames of what OpenAI's endpoints stream; how an endpoint words them is its `ChunkShape`.

They are put together from bytes made once a request: encoding each chunk through pydantic cost 8 µs
a token, this 0.3 µs (two cores of an AVX2 server CPU, 2026-11). Each endpoint's chunk model is what
the frames must equal, byte by byte; tests compare them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.api.error_responses import error_body
from service.api.frames import KEEP_ALIVE
from service.api.json_encoding import encode_json, encode_text
from service.api.openai.answers import usage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.outputs import FinishReason
    from service.api.openai.answers import Envelope
    from service.serving.answer_tokens import AnswerToken
    from service.serving.choice_reader import TextDelta
    from service.serving.generation import Generation

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """How an endpoint words its chunks."""

    object_name: str
    start: bytes | None  # what a choice's first chunk says, before any text
    before_text: bytes  # around the text in a chunk
    after_text: bytes
    end: bytes  # what a choice's last chunk says beside the reason
    logprobs: Callable[[Sequence[AnswerToken]], bytes]  # what is told of a chunk's tokens
    # The prompt's ids: in the first chunk, else in each choice's.
    reports_prompt_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkContents:
    """What a stream's chunks hold beside the text."""

    usage: bool = False  # a last chunk counts the tokens
    usage_always: bool = False  # every chunk does
    logprobs: bool = False
    token_ids: bool = False


class OpenAIFrames:
    """Makes the server-sent events of one answer."""

    keep_alive = KEEP_ALIVE

    def __init__(
        self, shape: ChunkShape, envelope: Envelope, generation: Generation, contents: ChunkContents
    ) -> None:
        self._shape = shape
        self._contents = contents
        self._generation = generation
        # Every chunk but the last is: head, index, what is new, reason, tail.
        fields = encode_json(envelope.fields(shape.object_name)).encode()
        self._envelope = b"data: " + fields[:-1]
        self._head = self._envelope + b',"choices":[{"index":'
        self._tail = b'}],"usage":null}\n\n' if contents.usage else b"}]}\n\n"
        self._after_text = shape.after_text + b',"logprobs":null,"finish_reason":null'
        self._plain_end = self._after_text + self._tail
        self._before_texts: dict[int, bytes] = {}  # by index
        self._reported_prompts: set[int] = set()  # choices that have reported their prompt's ids
        self._is_plain = not (contents.usage_always or contents.logprobs or contents.token_ids)

    def start(self, index: int) -> bytes:
        """Return what opens a choice."""
        if self._shape.start is None:
            return b""
        opened = self._opened(index) + self._shape.start
        frame = opened + b',"logprobs":null,"finish_reason":null' + self._closed(b"")
        if index or not (self._contents.token_ids and self._shape.reports_prompt_first):
            return frame
        return frame.removesuffix(b"}\n\n") + self._prompt_ids(index) + b"}\n\n"

    def delta(self, delta: TextDelta) -> bytes:
        """Return the chunks of one delta: its text, then its end."""
        if not self._is_plain:
            return self._detailed(delta)
        frames = b""
        if delta.text:
            frames = self._before_text(delta.index) + encode_text(delta.text) + self._plain_end
        if delta.finish_reason is not None:
            frames += self._opened(delta.index) + self._shape.end + b',"logprobs":null'
            frames += self._reason(delta) + self._tail
        return frames

    def end(self) -> bytes:
        """Return what closes the stream once every choice has ended."""
        if not self._contents.usage:
            return DONE
        return self._envelope + b',"choices":[]' + self._counted() + b"}\n\n" + DONE

    def error(self, error: Exception) -> bytes:
        """Return what ends a stream that failed; clients wait for [DONE] in any case."""
        return b"data: " + encode_json(error_body(error)).encode() + b"\n\n" + DONE

    def _detailed(self, delta: TextDelta) -> bytes:
        frames = b""
        ids = self._ids(delta)
        if delta.text or delta.tokens or (ids and delta.finish_reason is None):
            frames = self._before_text(delta.index) + encode_text(delta.text)
            frames += self._shape.after_text + b',"logprobs":' + self._logprobs(delta)
            frames += b',"finish_reason":null' + self._closed(ids)
            ids = b""
        if delta.finish_reason is not None:
            frames += self._opened(delta.index) + self._shape.end + b',"logprobs":null'
            frames += self._reason(delta) + self._closed(ids)
        return frames

    def _logprobs(self, delta: TextDelta) -> bytes:
        if not (self._contents.logprobs and delta.tokens):
            return b"null"
        return self._shape.logprobs(delta.tokens)

    def _ids(self, delta: TextDelta) -> bytes:
        if not self._contents.token_ids:
            return b""
        reported = b',"token_ids":' + encode_json(list(delta.token_ids)).encode()
        if delta.index not in self._reported_prompts and not self._shape.reports_prompt_first:
            self._reported_prompts.add(delta.index)
            reported += self._prompt_ids(delta.index)
        return reported

    def _prompt_ids(self, index: int) -> bytes:
        token_ids = list(self._generation.prompt_of(index).token_ids)
        return b',"prompt_token_ids":' + encode_json(token_ids).encode()

    def _reason(self, delta: TextDelta) -> bytes:
        if delta.finish_reason is None:
            return b',"finish_reason":null'
        reason = encode_json(self._finished_by(delta.finish_reason, delta.index)).encode()
        stop_reason = encode_json(delta.stop_reason).encode()
        return b',"finish_reason":' + reason + b',"stop_reason":' + stop_reason

    def _finished_by(self, reason: FinishReason, index: int) -> str:  # noqa: ARG002
        """Return the word for why a choice ended."""
        return reason.value

    def _closed(self, extra: bytes) -> bytes:
        if not self._contents.usage_always:
            return extra + self._tail
        return extra + b"}]" + self._counted() + b"}\n\n"

    def _counted(self) -> bytes:
        usage = usage_of(self._generation.usage).model_dump_json()
        return b',"usage":' + usage.encode()

    def _before_text(self, index: int) -> bytes:
        before = self._before_texts.get(index)
        if before is None:
            before = self._before_texts[index] = self._opened(index) + self._shape.before_text
        return before

    def _opened(self, index: int) -> bytes:
        return self._head + str(index).encode() + b","
