"""POST /v1/messages and /v1/messages/count_tokens: the next turn of a dialogue, and its prompt."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from engine.request import Terms
from service.api.anthropic.answers import (
    AnsweredMessage,
    AnswerShape,
    CountedInput,
    StreamedEvent,
)
from service.api.anthropic.dialogue import asked_turn, unread
from service.api.anthropic.fields import MessagesRequest, PromptRequest
from service.api.anthropic.frames import MessageWriter
from service.api.endpoint import Endpoint, ErrorShape
from service.api.request_bodies import read_request, report_ignored
from service.api.respond import acquire, answer, prepare, reserve
from service.api.responses import ModelResponse
from service.serving.generation_request import AnswerForm
from service.serving.sampling import SamplingOptions
from service.serving.turns import TurnLength, plan_turn

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.serving.generation_request import GenerationRequest
    from service.serving.served_model import ServedModel
    from service.serving.turns import PlannedTurn

# Prompts that are only counted may be longer than the context: clients ask before they shorten one.
MAX_COUNTED = 262_144


def messages_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoints."""

    async def create_message(http_request: Request) -> Response:
        """Answer a dialogue, at most up to the end of the context."""
        request = await read_request(http_request, MessagesRequest, context)
        model = await acquire(http_request, request.model, context)
        report_ignored(http_request.scope, unread(request, model), context.limits)
        place = reserve(http_request, model, 1)
        turn = asked_turn(request, model, most_tokens=model.engine.max_model_len)
        planned = await prepare(http_request, plan_turn(turn, model), context)
        report_ignored(http_request.scope, planned.unfollowed, context.limits)
        generation = generation_request(request, planned, model)
        shape = AnswerShape(
            model=model.name,
            request_id=http_request.scope.get("request_id"),
            new_reader=planned.new_reader,
            is_capped=request.max_tokens is None or generation.max_tokens[0] < request.max_tokens,
        )
        return await answer(
            http_request,
            generation,
            MessageWriter(shape),
            is_stream=bool(request.stream),
            model=model,
            context=context,
            place=place,
        )

    async def count_message_tokens(http_request: Request) -> Response:
        """Count the tokens of the prompt that a dialogue makes; nothing is generated."""
        context.lifecycle.require_open()
        request = await read_request(http_request, PromptRequest, context)
        model = await acquire(http_request, request.model, context)
        report_ignored(http_request.scope, unread(request, model), context.limits)
        most = max(model.engine.max_model_len, MAX_COUNTED)
        turn = asked_turn(request, model, most_tokens=most)
        planned = await prepare(http_request, plan_turn(turn, model), context)
        report_ignored(http_request.scope, planned.unfollowed, context.limits)
        counted = CountedInput(input_tokens=len(planned.token_ids))
        return ModelResponse(counted, headers=model.identity.headers)

    endpoint = partial(Endpoint, method="POST", tag="Anthropic", errors=ErrorShape.ANTHROPIC)
    return [
        endpoint(
            path="/v1/messages",
            handler=create_message,
            request=MessagesRequest,
            response=AnsweredMessage,
            chunk=StreamedEvent,
            takes_room=True,
        ),
        endpoint(
            path="/v1/messages/count_tokens",
            handler=count_message_tokens,
            request=PromptRequest,
            response=CountedInput,
        ),
    ]


def generation_request(
    request: MessagesRequest, planned: PlannedTurn, model: ServedModel
) -> GenerationRequest:
    """Return what is generated: at most what is left of the context. Raises ContextLengthError.

    More than is left is no error as elsewhere: this API's clients always name a number, most of
    them a constant that fits much larger contexts.
    """
    return planned.request(
        model,
        TurnLength(asked=request.max_tokens, is_cut_to_room=True),
        options=SamplingOptions(
            temperature=request.temperature, top_p=request.top_p, top_k=request.top_k
        ),
        form=AnswerForm(stop_strings=request.stop_sequences or ()),
        terms=Terms(caller=request.user),
    )
