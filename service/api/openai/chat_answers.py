"""What chat and fim/completions answer: their typed models, and how they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from engine.outputs import FinishReason
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
from service.api.openai.turn_frames import FinishedBy, TurnFrames, finished_by
from service.text.token_text import TokenTexts
from service.tools.whole_turn import read_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.outputs import TokenLogprobs
    from service.api.openai.fields import TurnRequest
    from service.serving.answer_tokens import AnswerToken
    from service.serving.generation import CompleteChoice, Generation
    from service.serving.served_model import ServedModel
    from service.serving.turns import PlannedTurn
    from service.tools.calls import ToolCall


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


class CalledFunction(AnswerModel):
    """A function that the model asks the client to run."""

    name: str
    arguments: str = Field(description="The text of a JSON object.")


class CalledTool(AnswerModel):
    """A call of a tool."""

    id: str = Field(description="What the call's result refers to.")
    type: Literal["function"]
    function: CalledFunction


_REASONING = "The model's thoughts, where it marks them; there under both names."
_TOOL_CALLS = "Complete calls; one that was cut off by length is none."


class ChatMessage(AnswerModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None = Field(description="null where there is no text beside calls or thoughts.")
    refusal: None
    reasoning_content: str | None = Field(default=None, description=_REASONING)
    reasoning: str | None = Field(default=None, description=_REASONING)
    tool_calls: list[CalledTool] | None = Field(default=None, description=_TOOL_CALLS)
    function_call: CalledFunction | None = Field(
        default=None, description="Where functions were offered."
    )


class ChatChoice(AnswerModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishedBy
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


class FunctionDelta(AnswerModel):
    """What a chunk adds to a call."""

    name: str | None = Field(None, description="In the call's first chunk alone.")
    arguments: str = Field(description="More of the text of a JSON object.")


class ToolDelta(AnswerModel):
    """What a chunk adds to a call of a tool."""

    index: int = Field(description="Of the call in its turn.")
    id: str | None = Field(None, description="In the call's first chunk alone.")
    type: Literal["function"] | None = Field(None, description="In the call's first chunk alone.")
    function: FunctionDelta


class ChatDelta(AnswerModel):
    """What a chunk adds to the assistant's turn; of these fields one, or none."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = Field(default=None, description=_REASONING)
    reasoning: str | None = Field(default=None, description=_REASONING)
    tool_calls: list[ToolDelta] | None = None
    function_call: FunctionDelta | None = Field(
        default=None, description="Where functions were offered."
    )


class ChatChunkChoice(AnswerModel):
    """What a chunk adds to one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishedBy | None
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

    def __init__(
        self,
        request: TurnRequest,
        model: ServedModel,
        turn: PlannedTurn | None = None,
        *,
        is_legacy: bool = False,
    ) -> None:
        """turn: how it is read; None: as text. is_legacy: calls are told in the older words."""
        self._request = request
        self._turn = None if turn is None or turn.is_plain else turn
        self._is_legacy = is_legacy
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
        if self._turn is None:
            return OpenAIFrames(shape, self._envelope, generation, contents)
        return TurnFrames(
            shape, self._envelope, generation, contents, self._turn, is_legacy=self._is_legacy
        )

    def _choice(self, choice: CompleteChoice) -> ChatChoice:
        request = self._request
        logprobs = None
        if request.logprobs:
            writer = LogprobsWriter(self._texts, request.top_logprobs or 0)
            logprobs = ChatLogprobs.model_validate_json(writer.write(choice.tokens))
        message, finished_by = self._message(choice)
        answer = ChatChoice(
            index=choice.index,
            message=message,
            logprobs=logprobs,
            finish_reason=finished_by,
            stop_reason=choice.stop_reason,
        )
        if request.return_token_ids:
            return answer.model_copy(update={"token_ids": list(choice.token_ids)})
        return answer

    def _message(self, choice: CompleteChoice) -> tuple[ChatMessage, FinishedBy]:
        reason = choice.finish_reason
        if self._turn is None:
            message = ChatMessage(role="assistant", content=choice.text, refusal=None)
            return message, reason.value
        is_cut = reason is FinishReason.LENGTH
        turn = read_whole(self._turn.new_reader(), choice.text, is_cut=is_cut)
        says_else = bool(turn.calls or turn.reasoning)
        told: dict[str, Any] = {"content": None if says_else and not turn.text else turn.text}
        if turn.reasoning:
            told |= {"reasoning_content": turn.reasoning, "reasoning": turn.reasoning}
        if turn.calls and self._is_legacy:
            call = turn.calls[0]
            told["function_call"] = CalledFunction(name=call.name, arguments=call.arguments)
        elif turn.calls:
            told["tool_calls"] = [_called(call) for call in turn.calls]
        message = ChatMessage(role="assistant", refusal=None, **told)
        return message, finished_by(reason, len(turn.calls), is_legacy=self._is_legacy)


def _called(call: ToolCall) -> CalledTool:
    function = CalledFunction(name=call.name, arguments=call.arguments)
    return CalledTool(id=call.id, type="function", function=function)


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
        return b'{"content":' + self.write_list(tokens) + b',"refusal":null}'

    def write_list(self, tokens: Sequence[AnswerToken]) -> bytes:
        """Return a list of `ChatToken`."""
        parts: list[bytes] = []
        for token in tokens:
            if token.logprobs is not None:
                parts.append(b"," if parts else b"[")
                self._write_one(token, token.logprobs, parts)
        parts.append(b"]" if parts else b"[]")
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
