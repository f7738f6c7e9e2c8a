"""POST /v1/chat/completions/render and /v1/completions/render: what would run, without running it.

vLLM's shape. The bodies are those of the endpoints whose requests are shown; what those would
refuse before the engine sees it is refused here, too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field, RootModel

from service.api.answer_model import AnswerModel
from service.api.dialogues import unread
from service.api.endpoint import Endpoint
from service.api.openai import chat, completions
from service.api.openai.answers import make_envelope
from service.api.openai.chat import ChatRequest
from service.api.openai.completion_request import CompletionRequest
from service.api.request_bodies import read_request, report_ignored
from service.api.respond import acquire
from service.api.responses import model_response
from service.api.scope import note_id
from service.serving.generation_request import plan_choices
from service.serving.text_lanes import run_in_lane
from service.text.backend import decode_whole, fast_backend

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.serving.generation_request import GenerationRequest, PlannedChoice
    from service.serving.served_model import ServedModel


class RenderedSampling(AnswerModel):
    """How tokens would be picked: the request's settings, else the variant's, else neutral ones."""

    n: int = Field(description="Answers to the prompt.")
    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int = Field(description="0: all.")
    min_p: float
    typical_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: dict[int, float]
    allowed_token_ids: list[int] | None
    bad_words_token_ids: list[list[int]]
    seed: int | None = Field(description="Of the first answer; null: a fresh one.")
    stop: list[str]
    stop_token_ids: list[int]
    ignore_eos: bool
    skip_special_tokens: bool
    include_stop_str_in_output: bool
    logprobs: int | None
    prompt_logprobs: int | None


class RenderedPrompt(AnswerModel):
    """One prompt as the engine would take it."""

    request_id: str = Field(description="The id that an answer would have.")
    model: str
    token_ids: list[int]
    sampling_params: RenderedSampling
    text: str = Field(description="The ids as text, special pieces shown.")


class RenderedPrompts(RootModel[list[RenderedPrompt]]):
    """Every prompt of a completion request."""


def render_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoints."""

    async def render_chat_completion(http_request: Request) -> Response:
        """Show the prompt and the settings that a dialogue would run with; nothing is generated."""
        context.lifecycle.require_open()
        request = await read_request(http_request, ChatRequest, context)
        model = await acquire(http_request, request.model, context)
        note_id(http_request.scope, request.request_id)
        report_ignored(http_request.scope, unread(request, model), context.limits)
        planned, turn = await chat.plan(request, model)
        report_ignored(http_request.scope, turn.unfollowed, context.limits)
        request_id = make_envelope("chatcmpl", model, request.request_id).id
        (rendered,) = await _rendered(planned, request_id, model)
        return await model_response(rendered, model.identity.headers)

    async def render_completion(http_request: Request) -> Response:
        """Show the prompts and the settings that they would run with; nothing is generated."""
        context.lifecycle.require_open()
        request = await read_request(http_request, CompletionRequest, context)
        model = await acquire(http_request, request.model, context)
        note_id(http_request.scope, request.request_id)
        request_id = make_envelope("cmpl", model, request.request_id).id
        rendered = await _rendered(await completions.plan(request, model), request_id, model)
        return await model_response(RenderedPrompts(rendered), model.identity.headers)

    return [
        Endpoint(
            method="POST",
            path="/v1/chat/completions/render",
            tag="Tokens",
            handler=render_chat_completion,
            request=ChatRequest,
            response=RenderedPrompt,
        ),
        Endpoint(
            method="POST",
            path="/v1/completions/render",
            tag="Tokens",
            handler=render_completion,
            request=CompletionRequest,
            list_response=RenderedPrompt,
        ),
    ]


async def _rendered(
    request: GenerationRequest, request_id: str, model: ServedModel
) -> list[RenderedPrompt]:
    # Beside the event loop: bad words are encoded, and every prompt is decoded.
    size = max(len(prompt.token_ids) for prompt in request.prompts)
    return await run_in_lane(size, partial(_render_all, request, request_id, model))


def _render_all(
    request: GenerationRequest, request_id: str, model: ServedModel
) -> list[RenderedPrompt]:
    backend = fast_backend(model.tokenizer)
    first_choices = plan_choices(replace(request, num_choices=1), model)
    return [
        RenderedPrompt(
            request_id=request_id,
            model=model.name,
            token_ids=list(choice.prompt.token_ids),
            sampling_params=_sampling(choice, num_tokens, request),
            text=decode_whole(backend, choice.prompt.token_ids),
        )
        for choice, num_tokens in zip(first_choices, request.max_tokens, strict=True)
    ]


def _sampling(
    choice: PlannedChoice, max_tokens: int, request: GenerationRequest
) -> RenderedSampling:
    params, form = choice.params, request.form
    allowed = params.allowed_token_ids
    return RenderedSampling(
        n=request.num_choices,
        max_tokens=max_tokens,
        min_tokens=params.min_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k or 0,
        min_p=params.min_p,
        typical_p=params.typical_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=dict(params.logit_bias),
        allowed_token_ids=None if allowed is None else sorted(allowed),
        bad_words_token_ids=[list(word) for word in params.bad_words],
        seed=params.seed,
        stop=list(form.stop_strings),
        stop_token_ids=sorted(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        skip_special_tokens=form.skips_special_tokens,
        include_stop_str_in_output=form.keeps_stop,
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
    )
