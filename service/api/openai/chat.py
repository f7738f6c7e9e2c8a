"""POST /v1/chat/completions: the next turn of a dialogue, through the variant's template."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, FailFast, Field, ValidationInfo
from pydantic import model_validator as check_together

from engine.sampling_params import MAX_LOGPROBS
from service.api.endpoint import Endpoint
from service.api.messages import Message
from service.api.openai.chat_answers import ChatCompletion, ChatCompletionChunk, ChatWriter
from service.api.openai.fields import OpenAIRequest
from service.api.openai.truncation import truncated
from service.api.request_bodies import read_request
from service.api.requests import Ignored, Unsupported, limits_of
from service.api.respond import acquire, answer
from service.api.scope import note_id
from service.serving.generation_request import GenerationRequest
from service.serving.prompts import Prompt, room_behind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.serving.served_model import ServedModel


def _check_messages(messages: object, info: ValidationInfo) -> object:
    limit = limits_of(info).max_messages
    if messages == []:
        raise ValueError("is empty; give at least one message")
    if isinstance(messages, list) and len(messages) > limit:
        raise ValueError(f"has {len(messages)} messages; give at most {limit}")
    return messages


def _none_if_free(choice: object) -> object:
    return None if choice in ("none", "auto") else choice


def _none_if_text(modalities: object) -> object:
    return None if modalities == ["text"] else modalities


class ChatRequest(OpenAIRequest):
    """The body of POST /v1/chat/completions."""

    other_names: ClassVar = OpenAIRequest.other_names

    messages: Annotated[list[Message], FailFast(), BeforeValidator(_check_messages)] = Field(
        description="The dialogue so far, oldest first.", json_schema_extra={"minItems": 1}
    )
    logprobs: bool | None = Field(None, description="Tell each token's logprob.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="So many likeliest ones too; with logprobs."
    )

    # Not yet
    tools: Unsupported = Field(None, description="Not supported yet.")
    tool_choice: Annotated[Unsupported, BeforeValidator(_none_if_free)] = Field(
        None, description="Not supported yet; `none` and `auto` are taken."
    )
    functions: Unsupported = Field(None, description="Not supported yet.")
    function_call: Annotated[Unsupported, BeforeValidator(_none_if_free)] = Field(
        None, description="Not supported yet; `none` and `auto` are taken."
    )
    modalities: Annotated[Unsupported, BeforeValidator(_none_if_text)] = Field(
        None, description='Only ["text"].'
    )
    audio: Unsupported = Field(None, description="Not supported.")
    parallel_tool_calls: Ignored
    reasoning_effort: Ignored

    @check_together(mode="after")
    def _logprobs_agree(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs has an effect only with logprobs set to true")
        return self


def chat_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""

    async def create_chat_completion(http_request: Request) -> Response:
        """Answer a dialogue; up to the end of the context where max_tokens is silent."""
        context.lifecycle.require_open()
        request = await read_request(http_request, ChatRequest, context)
        model = await acquire(http_request, request.model, context)
        note_id(http_request.scope, request.request_id)
        planned = await plan(request, model)
        return await answer(
            http_request,
            planned,
            ChatWriter(request, model),
            is_stream=request.is_stream,
            model=model,
            context=context,
        )

    return [
        Endpoint(
            method="POST",
            path="/v1/chat/completions",
            tag="OpenAI",
            handler=create_chat_completion,
            request=ChatRequest,
            response=ChatCompletion,
            chunk=ChatCompletionChunk,
        )
    ]


async def plan(request: ChatRequest, model: ServedModel) -> GenerationRequest:
    """Translate a request. Raises a RequestError or TextError."""
    prompt = Prompt(truncated(await render(request.messages, model), request, model))
    asked: int | None = request.value_of("max_tokens")
    room = room_behind(
        len(prompt.token_ids),
        asked,
        model.engine.max_model_len,
        prompt_param="messages",
        length_param=request.given_name_of("max_tokens"),
    )
    tells = bool(request.logprobs)
    return GenerationRequest(
        prompts=[prompt],
        max_tokens=[room if asked is None else asked],
        num_choices=request.n or 1,
        options=request.sampling_options((request.top_logprobs or 0) if tells else None),
        form=request.answer_form(tells_tokens=tells),
        terms=request.terms,
    )


async def render(messages: Sequence[Message], model: ServedModel) -> list[int]:
    """Return the ids of a dialogue up to where the assistant speaks next."""
    turns = [{"role": message.role, "content": message.text} for message in messages]
    # In a thread: a checkpoint's template runs in another process, which is waited for.
    return await asyncio.to_thread(model.require_chat_template().render, turns)
