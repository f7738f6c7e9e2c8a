"""What OpenAI's endpoints answer with, as far as it is the same in both: usage, ids, frames.

A stream's frames are put together from bytes made once a request: encoding each chunk through
pydantic cost 8 µs a token, this 0.3 µs (two cores of an AVX2 server CPU, 2026-11). Each endpoint's
chunk model is what the frames must equal, byte by byte; tests compare them.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from service.api.answer_model import AnswerModel
from service.api.error_responses import error_body
from service.api.frames import KEEP_ALIVE
from service.api.json_encoding import encode_json, encode_numbers, encode_text
from service.text.token_text import without_end

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.serving.answer_tokens import AnswerToken
    from service.serving.choice_reader import TextDelta
    from service.serving.generation import CompleteChoice, Generation
    from service.serving.generation import Usage as CountedTokens
    from service.serving.served_model import ServedModel
    from service.text.token_text import TokenTexts

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0  # OpenAI's own word for "hardly ever"


class PromptTokensDetails(AnswerModel):
    """Where a prompt's tokens came from."""

    cached_tokens: int = Field(description="Known from earlier prompts that began alike.")


class CompletionTokensDetails(AnswerModel):
    """What an answer's tokens were for."""

    reasoning_tokens: int = Field(description="0: reasoning is not told apart.")


class Usage(AnswerModel):
    """Tokens read and made."""

    prompt_tokens: int = Field(description="A prompt counts once, however many choices it has.")
    completion_tokens: int = Field(description="Every generated token, also one that ends.")
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class PromptLogprob(AnswerModel):
    """How likely one token was at its place in a prompt."""

    logprob: float
    rank: int | None = Field(None, description="1 is the likeliest; absent beyond those asked for.")
    decoded_token: str


def usage_of(counted: CountedTokens) -> Usage:
    """Return the tokens of a request as OpenAI's API tells them."""
    return Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=counted.cached_tokens),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=0),
    )


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an answer's every chunk says of the answer."""

    id: str
    created: int  # seconds since 1970
    model: str
    system_fingerprint: str

    def fields(self, object_name: str) -> dict[str, Any]:
        """Return its fields in the order in which they are sent."""
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


def make_envelope(prefix: str, model: ServedModel, request_id: str | None) -> Envelope:
    """Return a new answer's envelope; its id holds the request_id, else something random."""
    name = request_id or uuid.uuid4().hex
    return Envelope(f"{prefix}-{name}", int(time.time()), model.name, model.identity.fingerprint)


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """How an endpoint words its chunks."""

    object_name: str
    start: bytes | None  # what a choice's first chunk says, before any text
    before_text: bytes  # around the text in a chunk
    after_text: bytes
    end: bytes  # what a choice's last chunk says beside the reason
    logprobs: Callable[[Sequence[AnswerToken]], bytes]  # what is told of a chunk's tokens
    tells_prompt_first: bool = False  # the prompt's ids: in the first chunk, else in each choice's


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """What a stream's chunks tell beside the text."""

    usage: bool = False  # a last chunk counts the tokens
    usage_always: bool = False  # every chunk does
    logprobs: bool = False
    token_ids: bool = False


class OpenAIFrames:
    """Makes the server-sent events of one answer."""

    keep_alive = KEEP_ALIVE

    def __init__(
        self, shape: ChunkShape, envelope: Envelope, generation: Generation, telling: Telling
    ) -> None:
        self._shape = shape
        self._telling = telling
        self._generation = generation
        # Every chunk but the last is: head, index, what is new, reason, tail.
        fields = encode_json(envelope.fields(shape.object_name)).encode()
        self._envelope = b"data: " + fields[:-1]
        self._head = self._envelope + b',"choices":[{"index":'
        self._tail = b'}],"usage":null}\n\n' if telling.usage else b"}]}\n\n"
        self._after_text = shape.after_text + b',"logprobs":null,"finish_reason":null'
        self._plain_end = self._after_text + self._tail
        self._before_texts: dict[int, bytes] = {}  # by index
        self._told_prompts: set[int] = set()  # choices that have told their prompt's ids
        self._is_plain = not (telling.usage_always or telling.logprobs or telling.token_ids)

    def start(self, index: int) -> bytes:
        """Return what opens a choice."""
        if self._shape.start is None:
            return b""
        opened = self._opened(index) + self._shape.start
        frame = opened + b',"logprobs":null,"finish_reason":null' + self._closed(b"")
        if index or not (self._telling.token_ids and self._shape.tells_prompt_first):
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
        if not self._telling.usage:
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
        if not (self._telling.logprobs and delta.tokens):
            return b"null"
        return self._shape.logprobs(delta.tokens)

    def _ids(self, delta: TextDelta) -> bytes:
        if not self._telling.token_ids:
            return b""
        told = b',"token_ids":' + encode_json(list(delta.token_ids)).encode()
        if delta.index not in self._told_prompts and not self._shape.tells_prompt_first:
            self._told_prompts.add(delta.index)
            told += self._prompt_ids(delta.index)
        return told

    def _prompt_ids(self, index: int) -> bytes:
        token_ids = list(self._generation.prompt_of(index).token_ids)
        return b',"prompt_token_ids":' + encode_json(token_ids).encode()

    def _reason(self, delta: TextDelta) -> bytes:
        if delta.finish_reason is None:
            return b',"finish_reason":null'
        reason = encode_json(delta.finish_reason.value).encode()
        stop_reason = encode_json(delta.stop_reason).encode()
        return b',"finish_reason":' + reason + b',"stop_reason":' + stop_reason

    def _closed(self, extra: bytes) -> bytes:
        if not self._telling.usage_always:
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


def told_logprob(logprob: float) -> float:
    """Return a logprob as clients are told it: JSON has no infinity."""
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


def encode_logprobs(logprobs: Sequence[float]) -> list[bytes]:
    """Return each logprob as JSON, as pydantic's models write it."""
    if min(logprobs) < LEAST_LOGPROB:
        logprobs = [told_logprob(logprob) for logprob in logprobs]
    return encode_numbers(logprobs)[1:-1].split(b",")


def text_of(token: AnswerToken, texts: TokenTexts) -> str:
    """Return as much of a token's text as is part of the answer's."""
    if token.num_cut:
        return bytes_of(token, texts).decode(errors="replace")
    return texts.text(token.token_id)


def bytes_of(token: AnswerToken, texts: TokenTexts) -> bytes:
    """Return as much of a token's bytes as is part of the answer's text."""
    return without_end(texts.raw_bytes(token.token_id), token.num_cut)


def prompt_logprobs_of(
    choice: CompleteChoice, texts: TokenTexts, num_top: int
) -> list[dict[str, PromptLogprob] | None]:
    """Tell how likely a prompt's tokens were: of each, by id, itself and the likeliest ones."""
    ids = choice.prompt.token_ids[1:]
    told: list[dict[str, PromptLogprob] | None] = [None]
    for token_id, found in zip(ids, choice.prompt_logprobs, strict=True):
        ranks = {top_id: rank for rank, (top_id, _) in enumerate(found.top[:num_top], start=1)}
        likely = {token_id: found.logprob, **dict(found.top[:num_top])}
        told.append(
            {
                str(i): PromptLogprob(
                    logprob=told_logprob(logprob), rank=ranks.get(i), decoded_token=texts.text(i)
                )
                for i, logprob in likely.items()
            }
        )
    return told
