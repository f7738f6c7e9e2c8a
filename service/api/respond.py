"""Runs a generation request and answers with it, whole or as a stream; the same for every API."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from service.api.connection import while_connected
from service.api.event_stream import EventStream
from service.api.frames import MAX_REPORTED_AT_ONCE
from service.api.responses import ModelResponse
from service.api.scope import note_truncated, record_of, until_answered
from service.serving.generation import start
from service.serving.prompts import CutTokens

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.api.frames import AnswerWriter
    from service.serving.generation import CompleteChoice, Generation
    from service.serving.generation_request import GenerationRequest
    from service.serving.served_model import ServedModel


async def acquire(http_request: Request, name: str | None, context: ApiContext) -> ServedModel:
    """Return the model of this name, waiting for one that is loaded on demand.

    name: None where the request names none. Raises ModelNotFoundError, UnavailableError, or
    ClientGoneError for who does not wait as long.
    """
    record = record_of(http_request.scope)
    record.note_wait(name)
    found = context.models.resolve(name)
    acquired = context.models.acquire(found, until_answered(http_request))
    model = await while_connected(acquired, http_request.receive, context.lifecycle)
    record.note_model(model.name)
    context.observation.lives.see(model.name, model.engine)
    return model


async def answer(
    http_request: Request,
    request: GenerationRequest,
    writer: AnswerWriter,
    *,
    is_stream: bool,
    model: ServedModel,
    context: ApiContext,
) -> Response:
    """Generate for as long as the client is there for it."""
    if cut := _cut_of(request):
        note_truncated(http_request.scope, dataclasses.asdict(cut))
    generation = await start(model, request)
    record_of(http_request.scope).generation = generation
    headers = model.identity.headers
    if is_stream:
        return EventStream(
            generation,
            writer.frames(generation),
            lifecycle=context.lifecycle,
            timing=context.timing,
            headers=headers,
        )
    choices = await collect(http_request, generation, context)

    def write() -> Response:
        return ModelResponse(writer.whole(generation, choices), headers=headers)

    num_reported = sum(len(choice.tokens) + len(choice.prompt_logprobs) for choice in choices)
    return await asyncio.to_thread(write) if num_reported > MAX_REPORTED_AT_ONCE else write()


def _cut_of(request: GenerationRequest) -> CutTokens:
    return sum((prompt.cut for prompt in request.prompts), start=CutTokens())


async def collect(
    http_request: Request, generation: Generation, context: ApiContext
) -> list[CompleteChoice]:
    """Run a generation to its end; stop it when the client leaves."""
    return await while_connected(generation.collect(), http_request.receive, context.lifecycle)
