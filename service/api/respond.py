"""Runs a generation request and answers with it, whole or as a stream; the same for every API.

A request that cannot be queued is refused at the first moment: before its body is read where no
variant has room (`service.api.room`), else once it is known how many sequences it has and before
its template is rendered or its text encoded (`reserve`).
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, TypeVar

from service.api.connection import while_connected
from service.api.event_stream import EventStream
from service.api.frames import MAX_REPORTED_AT_ONCE
from service.api.responses import ModelResponse
from service.api.scope import (
    background_caller,
    note_truncated,
    record_of,
    release_body_share,
    until_answered,
)
from service.serving.generation import start
from service.serving.prompts import CutTokens
from service.variants.variant import VariantState

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.requests import Request
    from starlette.responses import Response

    from engine.transport.backlog import Place
    from service.api.context import ApiContext
    from service.api.frames import AnswerWriter
    from service.serving.generation import CompleteChoice, Generation
    from service.serving.generation_request import GenerationRequest
    from service.serving.served_model import ServedModel


T = TypeVar("T")


async def acquire(http_request: Request, name: str | None, context: ApiContext) -> ServedModel:
    """Return the model of this name, waiting for one that is loaded on demand.

    name: None where the request names none. Raises ModelNotFoundError, UnavailableError, or
    ClientGoneError for who does not wait as long.
    """
    record = record_of(http_request.scope)
    record.note_wait(name)
    found = context.models.resolve(name)
    status, _ = context.models.find(found)
    acquired = context.models.acquire(found, until_answered(http_request))
    if status.state is VariantState.SERVING:
        # Without a turn of the event loop: of a crowd's requests each takes its place before the
        # next one is looked at, and all beyond those that may wait are refused unread.
        model = await acquired
    else:
        model = await while_connected(acquired, http_request.receive, context.lifecycle)
    record.note_model(model.name)
    context.observation.lives.see(model.name, model.engine)
    return model


def reserve(http_request: Request, model: ServedModel, num_sequences: int) -> Place:
    """Take the place of a request's sequences in the queue; given up when the request ends.

    Raises QueueFullError, or what else the engine refuses with.
    """
    is_background = background_caller(http_request.scope) is not None
    place = model.engine.reserve(num_sequences, is_background=is_background)
    until_answered(http_request).callback(place.release)
    release_body_share(http_request.scope)
    return place


async def prepare(
    http_request: Request, work: Coroutine[object, object, T], context: ApiContext
) -> T:
    """Return what `work` makes of a request's texts; in vain, it is dropped where it waits.

    Raises ClientGoneError, and what `work` raises.
    """
    return await while_connected(work, http_request.receive, context.lifecycle)


async def answer(
    http_request: Request,
    request: GenerationRequest,
    writer: AnswerWriter,
    *,
    is_stream: bool,
    model: ServedModel,
    context: ApiContext,
    place: Place | None = None,
) -> Response:
    """Generate for as long as the client is there for it; place: what was reserved for it."""
    if cut := _cut_of(request):
        note_truncated(http_request.scope, dataclasses.asdict(cut))
    if background_caller(http_request.scope) is not None:
        terms = dataclasses.replace(request.terms, is_background=True)
        request = dataclasses.replace(request, terms=terms)
    generation = await _started(http_request, start(model, request, place), request, context)
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


async def _started(
    http_request: Request,
    starting: Coroutine[object, object, Generation],
    request: GenerationRequest,
    context: ApiContext,
) -> Generation:
    """Start a generation; one whose grammar is read meanwhile, for as long as the client waits."""
    if request.text_form is None:  # at once, so that nobody need listen
        return await starting
    return await prepare(http_request, starting, context)


def _cut_of(request: GenerationRequest) -> CutTokens:
    return sum((prompt.cut for prompt in request.prompts), start=CutTokens())


async def collect(
    http_request: Request, generation: Generation, context: ApiContext
) -> list[CompleteChoice]:
    """Run a generation to its end; stop it when the client leaves."""
    return await while_connected(generation.collect(), http_request.receive, context.lifecycle)
