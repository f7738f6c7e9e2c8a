"""POST /v1/completions: text on from where a prompt ends."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from service.api.endpoint import Endpoint
from service.api.openai.completion_answers import Completion, CompletionChunk, CompletionWriter
from service.api.openai.completion_request import CompletionRequest
from service.api.openai.gaps import plan_gap
from service.api.openai.truncation import DEFAULT_MAX_TOKENS, num_kept, truncated
from service.api.request_bodies import read_request
from service.api.respond import acquire, answer, prepare, reserve
from service.api.scope import note_id
from service.errors import InvalidFieldError
from service.serving.generation_request import GenerationRequest
from service.serving.prompts import Prompt, room_behind, within_context
from service.serving.text_lanes import run_in_lane
from service.text.backend import decode_whole, fast_backend
from service.text.prompt import encode_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.serving.sampling import SamplingOptions
    from service.serving.served_model import ServedModel


def completion_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""

    async def create_completion(http_request: Request) -> Response:
        """Continue each prompt; at most 16 tokens where max_tokens is silent."""
        request = await read_request(http_request, CompletionRequest, context)
        model = await acquire(http_request, request.model, context)
        note_id(http_request.scope, request.request_id)
        place = reserve(http_request, model, len(request.prompt) * request.num_choices)
        planned = await prepare(http_request, plan(request, model), context)
        writer = CompletionWriter(request, model)
        return await answer(
            http_request,
            planned,
            writer,
            is_stream=request.is_stream,
            model=model,
            context=context,
            place=place,
        )

    return [
        Endpoint(
            method="POST",
            path="/v1/completions",
            tag="OpenAI",
            handler=create_completion,
            request=CompletionRequest,
            response=Completion,
            chunk=CompletionChunk,
            infills=True,
            takes_room=True,
        )
    ]


async def plan(request: CompletionRequest, model: ServedModel) -> GenerationRequest:
    """Translate a request. Raises a RequestError or TextError."""
    if request.suffix is not None:
        return await _plan_gaps(request, request.suffix, model)
    asked: int | None = request.value_of("max_tokens")
    read = [await _read_prompt(given, request, model) for given in request.prompt]
    prompts, rooms = [prompt for prompt, _ in read], [room for _, room in read]
    return GenerationRequest(
        prompts=prompts,
        max_tokens=[min(DEFAULT_MAX_TOKENS, room) if asked is None else asked for room in rooms],
        num_choices=request.num_choices,
        options=_sampling_options(request),
        form=request.answer_form(
            echoes=bool(request.echo), reports_tokens=request.logprobs is not None
        ),
        text_form=request.text_form,
        terms=request.terms,
    )


async def _plan_gaps(
    request: CompletionRequest, suffix: str, model: ServedModel
) -> GenerationRequest:
    planned = [
        await plan_gap(
            prefix,
            suffix,
            request,
            model,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            echo=prefix if request.echo else "",
        )
        for prefix in request.prompt
        if isinstance(prefix, str)
    ]
    return GenerationRequest(
        prompts=[gap.prompt for gap in planned],
        max_tokens=[gap.max_tokens for gap in planned],
        num_choices=request.num_choices,
        options=_sampling_options(request),
        end_token_ids=planned[0].end_token_ids,
        form=request.answer_form(
            echoes=bool(request.echo), reports_tokens=request.logprobs is not None
        ),
        text_form=request.text_form,
        terms=request.terms,
    )


def _sampling_options(request: CompletionRequest) -> SamplingOptions:
    is_ranked = request.num_choices > (request.n or 1)
    # To rank choices, their tokens' logprobs are needed also where nobody is told of them.
    logprobs = 0 if is_ranked and request.logprobs is None else request.logprobs
    options = request.sampling_options(logprobs)
    if not request.echo or request.logprobs is None:
        return options
    reported = max(request.logprobs, request.prompt_logprobs or 0)
    return replace(options, prompt_logprobs=reported)


async def _read_prompt(
    given: str | list[int], request: CompletionRequest, model: ServedModel
) -> tuple[Prompt, int]:
    """Return a prompt, and the room behind it."""
    whole = await _read_ids(given, request, model)
    kept = truncated(whole, request, model)
    room = room_behind(
        len(kept),
        request.value_of("max_tokens"),
        model.engine.max_model_len,
        prompt_param="prompt",
        length_param=request.given_name_of("max_tokens"),
    )
    if not request.echo:
        return Prompt(kept), room
    if isinstance(given, str) and len(kept) == len(whole):
        return Prompt(kept, given), room
    decode = partial(
        decode_whole,
        fast_backend(model.tokenizer),
        kept,
        skip_special_tokens=request.skip_special_tokens is not False,
    )
    return Prompt(kept, await run_in_lane(len(kept), decode)), room


async def _read_ids(
    given: str | list[int], request: CompletionRequest, model: ServedModel
) -> Sequence[int]:
    if not isinstance(given, str):
        return given
    # Beside the event loop, however short it is: some expressions are slow on short texts.
    encode = partial(
        encode_prompt,
        model.tokenizer,
        given,
        add_special_tokens=request.add_special_tokens is not False,
        most_tokens=model.engine.max_model_len,
        keep_last=num_kept(request, model),
    )
    with within_context(model.engine.max_model_len, "prompt"):
        token_ids = await run_in_lane(len(given), encode)
    if not token_ids:
        raise InvalidFieldError("prompt: is empty; give at least one character", param="prompt")
    return token_ids
