"""POST /v1/responses: the next turn of a dialogue, as OpenAI's newer API has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from service.api.endpoint import Endpoint
from service.api.error_responses import error_form
from service.api.openai.responses.answer_models import ResponseObject, ResponseStreamEvent
from service.api.openai.responses.answers import ResponseWriter
from service.api.openai.responses.facts import ResponseFacts
from service.api.openai.responses.frames import failed_stream
from service.api.openai.responses.request import ResponsesRequest
from service.api.request_bodies import read_request, report_ignored
from service.api.respond import acquire, answer, prepare, reserve
from service.api.scope import EVENT_STREAM, note_id, record_of
from service.errors import ContextLengthError
from service.serving.turns import plan_turn

if TYPE_CHECKING:
    from starlette.requests import Request

    from service.api.context import ApiContext
    from service.serving.generation_request import GenerationRequest
    from service.serving.served_model import ServedModel
    from service.serving.turns import PlannedTurn


def response_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""

    async def create_response(http_request: Request) -> Response:
        """Answer a dialogue of items; nothing is kept, so each request brings all of it."""
        request = await read_request(http_request, ResponsesRequest, context)
        model = await acquire(http_request, request.model, context)
        note_id(http_request.scope, request.request_id)
        report_ignored(http_request.scope, request.unread(model), context.limits)
        place = reserve(http_request, model, 1)
        facts = ResponseFacts(request, model)
        try:
            turn = await prepare(http_request, _plan(request, model), context)
            planned = _generation_request(request, turn, model)
        except ContextLengthError as error:
            if not request.is_stream:
                raise
            return _too_long(http_request, facts, error, model)
        report_ignored(http_request.scope, turn.unfollowed, context.limits)
        return await answer(
            http_request,
            planned,
            ResponseWriter(request, model, facts, turn.new_reader),
            is_stream=request.is_stream,
            model=model,
            context=context,
            place=place,
        )

    return [
        Endpoint(
            method="POST",
            path="/v1/responses",
            tag="OpenAI",
            handler=create_response,
            request=ResponsesRequest,
            response=ResponseObject,
            chunk=ResponseStreamEvent,
            takes_room=True,
        )
    ]


async def _plan(request: ResponsesRequest, model: ServedModel) -> PlannedTurn:
    return await plan_turn(request.asked_turn(model), model)


def _generation_request(
    request: ResponsesRequest, turn: PlannedTurn, model: ServedModel
) -> GenerationRequest:
    """Translate a request. Raises ContextLengthError."""
    num_logprobs = request.num_logprobs
    return turn.request(
        model,
        request.turn_length,
        options=request.sampling_options(num_logprobs),
        form=request.answer_form(reports_tokens=num_logprobs is not None),
        terms=request.terms,
    )


def _too_long(
    http_request: Request, facts: ResponseFacts, error: ContextLengthError, model: ServedModel
) -> Response:
    """Tell in a stream that a dialogue is too long: agents shorten theirs at that event alone."""
    record_of(http_request.scope).failure = error_form(error).code
    headers = {**model.identity.headers, "cache-control": "no-cache"}
    return Response(failed_stream(facts, error), headers=headers, media_type=EVENT_STREAM)
