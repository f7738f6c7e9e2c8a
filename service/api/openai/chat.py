"""POST /v1/chat/completions: the next turn of a dialogue, through the variant's template."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, Field

from service.api.dialogues import DialogueRequest, Messages, asked_turn, unread
from service.api.endpoint import Endpoint
from service.api.openai.chat_answers import ChatCompletion, ChatCompletionChunk, ChatWriter
from service.api.openai.fields import TurnRequest
from service.api.openai.truncation import num_kept, truncated
from service.api.request_bodies import read_request, report_ignored
from service.api.requests import Unsupported
from service.api.respond import acquire, answer, prepare, reserve
from service.api.scope import note_id
from service.serving.turns import plan_turn

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.serving.generation_request import GenerationRequest
    from service.serving.served_model import ServedModel
    from service.serving.turns import PlannedTurn


def _none_if_text(modalities: object) -> object:
    return None if modalities == ["text"] else modalities


class ChatRequest(DialogueRequest, TurnRequest):
    """The body of POST /v1/chat/completions."""

    other_names: ClassVar = TurnRequest.other_names

    messages: Messages = Field(
        description="The dialogue so far, oldest first.", json_schema_extra={"minItems": 1}
    )

    # Not yet
    modalities: Annotated[Unsupported, BeforeValidator(_none_if_text)] = Field(
        None, description='Only ["text"].'
    )
    audio: Unsupported = Field(None, description="Not supported.")


def chat_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""

    async def create_chat_completion(http_request: Request) -> Response:
        """Answer a dialogue; up to the end of the context where max_tokens is silent."""
        request = await read_request(http_request, ChatRequest, context)
        model = await acquire(http_request, request.model, context)
        note_id(http_request.scope, request.request_id)
        report_ignored(http_request.scope, unread(request, model), context.limits)
        place = reserve(http_request, model, request.n or 1)
        planned, turn = await prepare(http_request, plan(request, model), context)
        report_ignored(http_request.scope, turn.unfollowed, context.limits)
        return await answer(
            http_request,
            planned,
            ChatWriter(request, model, turn, is_legacy=request.is_legacy),
            is_stream=request.is_stream,
            model=model,
            context=context,
            place=place,
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
            takes_room=True,
        )
    ]


async def plan(request: ChatRequest, model: ServedModel) -> tuple[GenerationRequest, PlannedTurn]:
    """Translate a request. Raises a RequestError or TextError."""
    dialogue = asked_turn(request, model)
    options = replace(dialogue.options, keep_last=num_kept(request, model))
    turn = await plan_turn(replace(dialogue, options=options, text_form=request.text_form), model)
    turn = replace(turn, token_ids=truncated(list(turn.token_ids), request, model))
    planned = turn.request(
        model,
        request.turn_length,
        options=request.sampling_options(request.num_logprobs),
        form=request.answer_form(reports_tokens=bool(request.logprobs)),
        terms=request.terms,
        num_choices=request.n or 1,
    )
    return planned, turn
