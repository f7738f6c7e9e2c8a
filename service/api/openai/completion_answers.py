"""What /v1/completions answers: its typed models, and how it writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from service.api.answer_model import AnswerModel
from service.api.json_encoding import encode_numbers
from service.api.openai.answers import Usage, make_envelope, usage_of
from service.api.openai.frames import ChunkContents, ChunkShape, OpenAIFrames
from service.api.openai.logprobs import PromptLogprob, finite_logprob, prompt_logprobs_of, text_of
from service.text.token_text import TokenTexts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.api.openai.completion_request import CompletionRequest
    from service.serving.answer_tokens import AnswerToken
    from service.serving.generation import CompleteChoice, Generation
    from service.serving.served_model import ServedModel


class CompletionLogprobs(AnswerModel):
    """Each token of a choice (with echo, of its prompt too): four lists of the same length."""

    text_offset: list[int] = Field(description="Where each begins in the text, in characters.")
    token_logprobs: list[float | None] = Field(description="null for a prompt's first token.")
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None] = Field(description="The likeliest, by text.")


class CompletionChoice(AnswerModel):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None = Field(
        None, description="The string or id of the request that ended it."
    )
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None


class Completion(AnswerModel):
    """A whole answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(AnswerModel):
    """One event of a streamed answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class CompletionWriter:
    """Writes the answer to one request."""

    def __init__(self, request: CompletionRequest, model: ServedModel) -> None:
        self._request = request
        self._texts = TokenTexts(model.tokenizer)
        self._envelope = make_envelope("cmpl", model, request.request_id)

    def whole(self, generation: Generation, choices: Sequence[CompleteChoice]) -> Completion:
        """Return an answer that is not streamed: of each prompt's choices the best n."""
        return Completion(
            **self._envelope.fields("text_completion"),
            choices=[
                self._choice(index, choice) for index, choice in enumerate(self._best(choices))
            ],
            usage=usage_of(generation.usage),
        )

    def frames(self, generation: Generation) -> OpenAIFrames:
        """Return the frames of an answer that is streamed."""
        request = self._request
        num_top = request.logprobs or 0
        shape = ChunkShape(
            object_name="text_completion",
            start=None,
            before_text=b'"text":',
            after_text=b"",
            end=b'"text":""',
            logprobs=lambda tokens: encode_numbers(logprobs_fields(tokens, self._texts, num_top)),
        )
        contents = ChunkContents(
            usage=request.include_usage,
            usage_always=request.counts_always,
            logprobs=request.logprobs is not None,
            token_ids=bool(request.return_token_ids),
        )
        return OpenAIFrames(shape, self._envelope, generation, contents)

    def _best(self, choices: Sequence[CompleteChoice]) -> list[CompleteChoice]:
        num_made, num_returned = self._request.num_choices, self._request.n or 1
        if num_made == num_returned:
            return list(choices)
        best: list[CompleteChoice] = []
        for start in range(0, len(choices), num_made):
            of_prompt = choices[start : start + num_made]
            best += sorted(of_prompt, key=lambda choice: -choice.mean_logprob)[:num_returned]
        return best

    def _choice(self, index: int, choice: CompleteChoice) -> CompletionChoice:
        request = self._request
        logprobs = None
        if request.logprobs is not None:
            fields = logprobs_fields(choice.tokens, self._texts, request.logprobs)
            logprobs = CompletionLogprobs(**fields)
        answer = CompletionChoice(
            index=index,
            text=choice.text,
            logprobs=logprobs,
            finish_reason=choice.finish_reason.value,
            stop_reason=choice.stop_reason,
        )
        reported: dict[str, object] = {}
        if request.return_token_ids:
            reported["token_ids"] = list(choice.token_ids)
            reported["prompt_token_ids"] = list(choice.prompt.token_ids)
        if request.prompt_logprobs is not None:
            reported["prompt_logprobs"] = prompt_logprobs_of(
                choice, self._texts, request.prompt_logprobs
            )
        return answer.model_copy(update=reported) if reported else answer


def logprobs_fields(
    tokens: Sequence[AnswerToken], texts: TokenTexts, num_top: int
) -> dict[str, Any]:
    """Tell each token's place and logprob, and the likeliest ones, as plain values."""
    return {
        "text_offset": [token.offset for token in tokens],
        "token_logprobs": [
            token.logprobs and finite_logprob(token.logprobs.logprob) for token in tokens
        ],
        "tokens": [text_of(token, texts) for token in tokens],
        "top_logprobs": [_likeliest(token, texts, num_top) for token in tokens],
    }


def _likeliest(token: AnswerToken, texts: TokenTexts, num_top: int) -> dict[str, float] | None:
    """Return the likeliest tokens and the one that came; of two with one text, the likelier."""
    if token.logprobs is None:
        return None
    likeliest: dict[str, float] = {}
    for token_id, logprob in token.logprobs.top[:num_top]:
        is_own = token_id == token.token_id
        likeliest.setdefault(
            text_of(token, texts) if is_own else texts.text(token_id), finite_logprob(logprob)
        )
    likeliest.setdefault(text_of(token, texts), finite_logprob(token.logprobs.logprob))
    return likeliest
