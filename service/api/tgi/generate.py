"""POST /, /generate and /generate_stream: text on from where a prompt ends."""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

from service.api.endpoint import Endpoint, ErrorShape
from service.api.request_bodies import read_request
from service.api.respond import acquire, answer, prepare, reserve
from service.api.tgi.answer_models import GeneratedText, StreamedToken
from service.api.tgi.answers import TgiAnswerForm, TgiWriter
from service.api.tgi.parameters import (
    CompatibleRequest,
    GenerateRequest,
    GenerateStreamRequest,
    TgiRequest,
)
from service.errors import InvalidFieldError
from service.serving.generation_request import AnswerForm, GenerationRequest
from service.serving.prompts import Prompt, room_behind, truncate, within_context
from service.serving.text_lanes import run_in_lane
from service.text.prompt import encode_prompt

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.api.tgi.parameters import GenerationParameters
    from service.serving.served_model import ServedModel

DEFAULT_MAX_NEW_TOKENS = 100
_SEEDS = 2**53  # as far as JSON's readers agree on whole numbers


def generate_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoints."""

    async def generate_compatibly(http_request: Request) -> Response:
        """Go on from a text: a list of one answer, or a stream where `stream` says so."""
        request = await read_request(http_request, CompatibleRequest, context)
        is_stream = bool(request.stream)
        return await respond(http_request, request, context, is_stream=is_stream, is_list=True)

    async def generate(http_request: Request) -> Response:
        """Go on from a text."""
        request = await read_request(http_request, GenerateRequest, context)
        return await respond(http_request, request, context)

    async def generate_stream(http_request: Request) -> Response:
        """Go on from a text, told token by token."""
        request = await read_request(http_request, GenerateStreamRequest, context)
        return await respond(http_request, request, context, is_stream=True)

    endpoint = partial(
        Endpoint,
        method="POST",
        tag="TGI",
        errors=ErrorShape.TGI,
        statuses=(424,),
        takes_room=True,
    )
    return [
        endpoint(
            path="/",
            handler=generate_compatibly,
            request=CompatibleRequest,
            list_response=GeneratedText,
            chunk=StreamedToken,
        ),
        endpoint(
            path="/generate",
            handler=generate,
            request=GenerateRequest,
            response=GeneratedText,
        ),
        endpoint(
            path="/generate_stream",
            handler=generate_stream,
            request=GenerateStreamRequest,
            chunk=StreamedToken,
        ),
    ]


async def respond(
    http_request: Request,
    request: TgiRequest,
    context: ApiContext,
    *,
    is_stream: bool = False,
    is_list: bool = False,
) -> Response:
    """Answer a request, whole or as a stream. Raises a RequestError or TextError."""
    _check(request, is_stream=is_stream)
    model = await acquire(http_request, request.model, context)
    place = reserve(http_request, model, request.settings.best_of or 1)
    form = TgiAnswerForm(request.inputs, request.settings, _seed(request.settings))
    return await answer(
        http_request,
        await prepare(http_request, plan(form, model, is_stream=is_stream), context),
        TgiWriter(form, model, is_list=is_list),
        is_stream=is_stream,
        model=model,
        context=context,
        place=place,
    )


def _seed(parameters: GenerationParameters) -> int | None:
    """Return what to draw by: chosen here where the request is silent, so that it can be told."""
    if not parameters.is_sampled:
        return None
    return secrets.randbelow(_SEEDS) if parameters.seed is None else parameters.seed


def _check(request: TgiRequest, *, is_stream: bool) -> None:
    parameters = request.settings
    num_choices = parameters.best_of or 1
    if num_choices > 1 and not parameters.is_sampled:
        raise InvalidFieldError(
            "parameters.best_of: without sampling all answers are alike; set do_sample",
            param="parameters.best_of",
        )
    if num_choices > 1 and is_stream:
        raise InvalidFieldError(
            "parameters.best_of: cannot be streamed; leave it out, or do not stream",
            param="parameters.best_of",
        )
    if parameters.decoder_input_details and is_stream:
        raise InvalidFieldError(
            "parameters.decoder_input_details: cannot be streamed; leave it out, or do not stream",
            param="parameters.decoder_input_details",
        )


async def plan(form: TgiAnswerForm, model: ServedModel, *, is_stream: bool) -> GenerationRequest:
    """Translate a request. Raises a RequestError or TextError."""
    parameters = form.parameters
    prompt = await _prompt(form, model)
    room = room_behind(
        len(prompt.token_ids),
        parameters.max_new_tokens,
        model.engine.max_model_len,
        prompt_param="inputs",
        length_param="parameters.max_new_tokens",
    )
    num_choices = parameters.best_of or 1
    reports_tokens = is_stream or parameters.reports_details
    # Of several answers the best is told by their logprobs, also where nobody else hears of them.
    needs_logprobs = reports_tokens or num_choices > 1
    return GenerationRequest(
        prompts=[prompt],
        max_tokens=[parameters.max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, room)],
        num_choices=num_choices,
        options=parameters.sampling_options(
            seed=form.seed,
            logprobs=form.num_top if needs_logprobs else None,
            prompt_logprobs=0 if parameters.decoder_input_details else None,
        ),
        text_form=None if parameters.grammar is None else parameters.grammar.text_form,
        form=AnswerForm(
            stop_strings=parameters.value_of("stop") or (),
            keeps_stop_string=True,
            reports_tokens=reports_tokens,
            reports_ends=True,
        ),
    )


async def _prompt(form: TgiAnswerForm, model: ServedModel) -> Prompt:
    if not form.inputs:
        raise InvalidFieldError("inputs: is empty; give at least one character", param="inputs")
    # Beside the event loop, however short it is: some expressions are slow on short texts.
    limit, kept = model.engine.max_model_len, form.parameters.truncate
    encode = partial(
        encode_prompt,
        model.tokenizer,
        form.inputs,
        most_tokens=limit,
        keep_last=kept,
    )
    with within_context(limit, "inputs"):
        token_ids = await run_in_lane(len(form.inputs), encode)
    return Prompt(token_ids if kept is None else truncate(token_ids, kept, model.tokenizer))
