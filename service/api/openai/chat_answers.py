"""What chat and fim/completions answer: their typed models, and how they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from service.api.answer_model import AnswerModel
from service.api.json_encoding import encode_json, encode_text
from service.api.openai.answers import Usage, make_envelope, usage_of
from service.api.openai.frames import ChunkContents, ChunkShape, OpenAIFrames
from service.api.openai.logprobs import (
    PromptLogprob,
    bytes_of,
    encode_logprobs,
    prompt_logprobs_of,
    text_of,
)
from service.text.token_text import TokenTexts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.outputs import TokenLogprobs
    from service.api.openai.fields import TurnRequest
    from service.serving.answer_tokens import AnswerToken
    from service.serving.generation import CompleteChoice, Generation
    from service.serving.served_model import ServedModel


class LikelyToken(AnswerModel):
    """A token that might have come, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] = Field(description="Exact, also where the text is half a character.")


class ChatToken(LikelyToken):
    """A token that came."""

    top_logprobs: list[LikelyToken] = Field(description="The likeliest at its place.")


class ChatLogprobs(AnswerModel):
    """Each token of a choice."""

    content: list[ChatToken]
    refusal: None


class ChatMessage(AnswerModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(AnswerModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None = Field(
        description="The string or id of the request that ended it."
    )
    token_ids: list[int] | None = None


class ChatCompletion(AnswerModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


class ChatDelta(AnswerModel):
    """What a chunk adds to the assistant's turn."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(AnswerModel):
    """What a chunk adds to one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(AnswerModel):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = Field(None, description="In the first chunk.")


class ChatWriter:
    """Writes the answer to one request."""

    def __init__(self, request: TurnRequest, model: ServedModel) -> None:
        self._request = request
        self._texts = TokenTexts(model.tokenizer)
        self._envelope = make_envelope("chatcmpl", model, request.request_id)

    def whole(self, generation: Generation, choices: Sequence[CompleteChoice]) -> ChatCompletion:
        """Return an answer that is not streamed."""
        request = self._request
        answer = ChatCompletion(
            **self._envelope.fields("chat.completion"),
            choices=[self._choice(choice) for choice in choices],
            usage=usage_of(generation.usage),
        )
        reported: dict[str, object] = {}
        if request.return_token_ids:
            reported["prompt_token_ids"] = list(choices[0].prompt.token_ids)
        if request.prompt_logprobs is not None:
            reported["prompt_logprobs"] = prompt_logprobs_of(
                choices[0], self._texts, request.prompt_logprobs
            )
        return answer.model_copy(update=reported) if reported else answer

    def frames(self, generation: Generation) -> OpenAIFrames:
        """Return the frames of an answer that is streamed."""
        request = self._request
        writer = LogprobsWriter(self._texts, request.top_logprobs or 0)
        shape = ChunkShape(
            object_name="chat.completion.chunk",
            start=b'"delta":{"role":"assistant","content":""}',
            before_text=b'"delta":{"content":',
            after_text=b"}",
            end=b'"delta":{}',
            logprobs=writer.write,
            reports_prompt_first=True,
        )
        contents = ChunkContents(
            usage=request.include_usage,
            usage_always=request.counts_always,
            logprobs=bool(request.logprobs),
            token_ids=bool(request.return_token_ids),
        )
        return OpenAIFrames(shape, self._envelope, generation, contents)

    def _choice(self, choice: CompleteChoice) -> ChatChoice:
        request = self._request
        logprobs = None
        if request.logprobs:
            writer = LogprobsWriter(self._texts, request.top_logprobs or 0)
            logprobs = ChatLogprobs.model_validate_json(writer.write(choice.tokens))
        answer = ChatChoice(
            index=choice.index,
            message=ChatMessage(role="assistant", content=choice.text, refusal=None),
            logprobs=logprobs,
            finish_reason=choice.finish_reason.value,
            stop_reason=choice.stop_reason,
        )
        if request.return_token_ids:
            return answer.model_copy(update={"token_ids": list(choice.token_ids)})
        return answer


class LogprobsWriter:
    """Writes what is told of tokens, as JSON; for one answer.

    What a token is, its text and bytes, is encoded when it first comes: through a plain encoder a
    token with five alternatives cost 12 µs, this way 6 (two cores of an AVX2 server CPU, 2026-11).
    """

    def __init__(self, texts: TokenTexts, num_top: int) -> None:
        self._texts = texts
        self._num_top = num_top
        self._known: dict[int, tuple[bytes, bytes]] = {}  # by id: before and after the number

    def write(self, tokens: Sequence[AnswerToken]) -> bytes:
        """Return an object of `ChatLogprobs`."""
        parts: list[bytes] = []
        for token in tokens:
            if token.logprobs is not None:
                parts.append(b"," if parts else b'{"content":[')
                self._write_one(token, token.logprobs, parts)
        parts.append(b'],"refusal":null}' if parts else b'{"content":[],"refusal":null}')
        return b"".join(parts)

    def _write_one(self, token: AnswerToken, found: TokenLogprobs, parts: list[bytes]) -> None:
        top = found.top[: self._num_top]
        own, *numbers = encode_logprobs([found.logprob, *[logprob for _, logprob in top]])
        before, after = self._ends_of(token)
        parts += (before, own, after, b',"top_logprobs":[')
        known = self._known
        between = b""
        for number, (token_id, _) in zip(numbers, top, strict=True):
            before, after = known.get(token_id) or self._learn(token_id)
            parts += (between, before, number, after)
            between = b"},"
        parts.append(b"}]}" if top else b"]}")

    def _ends_of(self, token: AnswerToken) -> tuple[bytes, bytes]:
        if token.num_cut:
            return _ends(text_of(token, self._texts), bytes_of(token, self._texts))
        return self._known.get(token.token_id) or self._learn(token.token_id)

    def _learn(self, token_id: int) -> tuple[bytes, bytes]:
        ends = _ends(self._texts.text(token_id), self._texts.raw_bytes(token_id))
        self._known[token_id] = ends
        return ends


def _ends(text: str, raw: bytes) -> tuple[bytes, bytes]:
    before = b'{"token":' + encode_text(text) + b',"logprob":'
    return before, b',"bytes":' + encode_json(list(raw)).encode()
