"""Runs planned choices and answers with them, whole or as a stream; the same for both endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.request import Terms
from service.api.connection import while_connected
from service.api.error_responses import JsonResponse
from service.api.event_stream import EventStream
from service.api.response_body import Choice, ResponseBuilder, ResponseShape
from service.api.scope import until_answered
from service.serving.generation import Generation, PlannedChoice, TextDelta, submit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from engine.outputs import FinishReason
    from service.api.context import ApiContext
    from service.api.requests import GenerationRequest
    from service.serving.served_model import ServedModel


async def acquire(http_request: Request, name: str, context: ApiContext) -> ServedModel:
    """Return the model of this name, waiting for one that is loaded on demand.

    Raises ModelNotFoundError, UnavailableError, or ClientGoneError for who does not wait as long.
    """
    acquired = context.models.acquire(name, until_answered(http_request))
    return await while_connected(acquired, http_request.receive, context.lifecycle)


async def answer(
    http_request: Request,
    request: GenerationRequest,
    choices: Sequence[PlannedChoice],
    *,
    form: ResponseShape,
    model: ServedModel,
    context: ApiContext,
) -> Response:
    """Generate the choices for as long as the client is there for them."""
    answer = ResponseBuilder(form, model)
    generation = submit(model, choices, request.stop, terms=Terms(caller=request.user or ""))
    headers = model.identity.headers
    if request.stream:
        return EventStream(
            generation,
            answer.frames(include_usage=request.include_usage),
            lifecycle=context.lifecycle,
            timing=context.timing,
            headers=headers,
        )
    complete = await while_connected(_collect(generation), http_request.receive, context.lifecycle)
    return JsonResponse(answer.whole(complete, generation.usage), headers=headers)


async def _collect(generation: Generation) -> list[Choice]:
    """Run a generation to its end; return its choices in the order of their index."""
    texts: list[list[str]] = [[] for _ in range(generation.num_choices)]
    reasons: dict[int, FinishReason] = {}

    async def keep(delta: TextDelta) -> None:
        texts[delta.index].append(delta.text)
        if delta.finish_reason is not None:
            reasons[delta.index] = delta.finish_reason

    await generation.run(keep)
    return [Choice("".join(pieces), reasons[index]) for index, pieces in enumerate(texts)]
