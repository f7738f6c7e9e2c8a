"""POST /tokenize: a text or a dialogue to token ids, and what a model will see of it.

vLLM's shape by `prompt` or `messages`, llama.cpp's by `content`. Beside theirs each answer tells
which pieces are special, and where BOS came from.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, RootModel
from pydantic import model_validator as check_together

from service.api.answer_model import AnswerModel
from service.api.dialogues import DialogueRequest, render, render_text, unread
from service.api.endpoint import Endpoint
from service.api.request_bodies import read_request, report_ignored
from service.api.requests import Forbidden, Name
from service.api.respond import acquire
from service.api.responses import model_response
from service.errors import MissingFieldError
from service.serving.prompts import within_context
from service.serving.text_lanes import run_in_lane
from service.text.backend import fast_backend
from service.text.bos import BosOrigin, bos_origin
from service.text.prompt import encode_prompt
from service.text.token_text import TokenTexts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.serving.served_model import ServedModel

MAX_TOLD = 262_144  # tokens of a text that no context would hold
_SOURCES = ("prompt", "messages", "content")
# What has an effect on which of them.
_ONLY_WITH = {
    "add_special_tokens": ("prompt",),
    "return_token_strs": ("prompt", "messages"),
    "add_special": ("content",),
    "parse_special": ("prompt", "content"),
    "with_pieces": ("content",),
    "continue_final_message": ("messages",),
    "chat_template_kwargs": ("messages",),
    "documents": ("messages",),
    "reasoning_effort": ("messages",),
    "tools": ("messages",),
    "tool_choice": ("messages",),
    "parallel_tool_calls": ("messages",),
    "functions": ("messages",),
    "function_call": ("messages",),
}


class TokenizeRequest(DialogueRequest):
    """The body of POST /tokenize: one of `prompt`, `messages` and `content`."""

    model: Name = Field(
        None, description="A served name. Where one variant is served, silence means it."
    )
    prompt: str | None = Field(None, description="A text, as vLLM's clients send it.")
    content: str | None = Field(None, description="A text, as llama.cpp's clients send it.")

    add_special_tokens: bool | None = Field(
        None, description="false: `prompt` gets no BOS. true by default."
    )
    return_token_strs: bool | None = Field(
        None, description="Tell the pieces of the vocabulary too; not with `content`."
    )
    add_special: bool | None = Field(
        None, description="true: `content` gets one BOS, if the tokenizer adds any."
    )
    parse_special: bool | None = Field(
        None, description="false: special pieces in the text are plain text; not with `messages`."
    )
    with_pieces: bool | None = Field(
        None, description="With `content`: each token is told with its text, or bytes."
    )
    chat_template: Forbidden = Field(None, description="Never taken from a request.")

    @property
    def parses_special(self) -> bool:
        """Whether special pieces that were typed become their tokens."""
        return self.parse_special is not False

    @check_together(mode="after")
    def _has_one_source(self) -> TokenizeRequest:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if not given:  # no ValueError, so pydantic passes it on as it is
            raise MissingFieldError(f"give one of {', '.join(_SOURCES)}", param="prompt")
        if len(given) > 1:
            raise ValueError(f"has {' and '.join(given)}; give one of {', '.join(_SOURCES)}")
        for name, sources in _ONLY_WITH.items():
            if getattr(self, name) and given[0] not in sources:
                raise ValueError(f"{name} has an effect only with {' or '.join(sources)}")
        if self.add_generation_prompt is False and given[0] != "messages":  # true is neutral
            raise ValueError("add_generation_prompt has an effect only with messages")
        return self


class PromptTokens(AnswerModel):
    """A text's tokens, or a dialogue's."""

    count: int
    max_model_len: int = Field(description="Most tokens of a prompt and its answer together.")
    tokens: list[int]
    token_strs: list[str] | None = Field(description="The pieces; null where not asked for.")
    special: list[bool] = Field(description="Of each token: whether texts leave it out.")
    bos: BosOrigin | None = Field(description="Who put BOS before it; null where there is none.")


class TokenPiece(AnswerModel):
    """A token and what it stands for."""

    id: int
    piece: str | list[int] = Field(description="Text, or bytes that are no whole character.")


class ContentTokens(AnswerModel):
    """The tokens of `content`."""

    # Else it would be noted of each piece that it is no number.
    tokens: Annotated[list[int], Field(fail_fast=True)] | list[TokenPiece]
    special: list[bool] = Field(description="Of each token: whether texts leave it out.")
    bos: BosOrigin | None = Field(description="Who put BOS before it; null where there is none.")


class TokenizedText(RootModel[PromptTokens | ContentTokens]):
    """The answer: of `content` it has llama.cpp's shape, else vLLM's."""


def tokenize_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""

    async def tokenize(http_request: Request) -> Response:
        """Turn a text or a dialogue into token ids; nothing is generated."""
        context.lifecycle.require_open()
        request = await read_request(http_request, TokenizeRequest, context)
        model = await acquire(http_request, request.model, context)
        if request.messages is not None:
            report_ignored(http_request.scope, unread(request, model), context.limits)
            answer: PromptTokens | ContentTokens = await tokenize_messages(request, model)
        else:
            # All of it beside the event loop: a body may hold a million tokens.
            read = tokenize_prompt if request.content is None else tokenize_content
            size = len(request.prompt or request.content or "")
            with within_context(model.engine.max_model_len, _text_name(request)):
                answer = await run_in_lane(size, partial(read, request, model))
        return await model_response(answer, model.identity.headers)

    return [
        Endpoint(
            method="POST",
            path="/tokenize",
            tag="Tokens",
            handler=tokenize,
            request=TokenizeRequest,
            response=TokenizedText,
        )
    ]


def _text_name(request: TokenizeRequest) -> str:
    return "prompt" if request.content is None else "content"


def _most_told(model: ServedModel) -> int:
    """Return how many tokens a text may have: also somewhat longer ones are sent to be counted."""
    return max(model.engine.max_model_len, MAX_TOLD)


def tokenize_prompt(request: TokenizeRequest, model: ServedModel) -> PromptTokens:
    """Encode `prompt` as a completion's is."""
    text = request.prompt or ""
    token_ids = encode_prompt(
        model.tokenizer,
        text,
        add_special_tokens=request.add_special_tokens is not False,
        parse_special=request.parses_special,
        most_tokens=_most_told(model),
    )
    origin = bos_origin(model.tokenizer, token_ids, text if request.parses_special else "")
    return _prompt_tokens(token_ids, origin, request, model)


async def tokenize_messages(request: TokenizeRequest, model: ServedModel) -> PromptTokens:
    """Encode `messages` as a chat completion's are."""
    token_ids = await render(request, model)
    text = await render_text(request, model)
    origin = bos_origin(model.tokenizer, token_ids, text, BosOrigin.TEMPLATE)
    report = partial(_prompt_tokens, token_ids, origin, request, model)
    return await run_in_lane(len(token_ids), report)


def tokenize_content(request: TokenizeRequest, model: ServedModel) -> ContentTokens:
    """Encode `content` as llama.cpp's clients ask for it."""
    text = request.content or ""
    token_ids = encode_prompt(
        model.tokenizer,
        text,
        add_special_tokens=bool(request.add_special),
        parse_special=request.parses_special,
        most_tokens=_most_told(model),
    )
    texts = TokenTexts(model.tokenizer)
    tokens: list[int] | list[TokenPiece] = token_ids
    if request.with_pieces:
        # One for each piece of the vocabulary, not for each of a million tokens.
        pieces = {i: TokenPiece(id=i, piece=_piece(texts.raw_bytes(i))) for i in set(token_ids)}
        tokens = [pieces[token_id] for token_id in token_ids]
    return ContentTokens(
        tokens=tokens,
        special=[texts.is_special(token_id) for token_id in token_ids],
        bos=bos_origin(model.tokenizer, token_ids, text if request.parses_special else ""),
    )


def _prompt_tokens(
    token_ids: Sequence[int],
    origin: BosOrigin | None,
    request: TokenizeRequest,
    model: ServedModel,
) -> PromptTokens:
    backend, texts = fast_backend(model.tokenizer), TokenTexts(model.tokenizer)
    strings = [backend.id_to_token(token_id) or "" for token_id in token_ids]
    return PromptTokens(
        count=len(token_ids),
        max_model_len=model.engine.max_model_len,
        tokens=list(token_ids),
        token_strs=strings if request.return_token_strs else None,
        special=[texts.is_special(token_id) for token_id in token_ids],
        bos=origin,
    )


def _piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)
