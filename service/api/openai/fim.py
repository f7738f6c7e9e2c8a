"""POST /v1/fim/completions: fills a gap, in the words of Mistral's API, which editors use.

It answers as the chat does, so it stands beside it: the middle is the assistant's turn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from service.api.endpoint import Endpoint
from service.api.openai.chat_answers import ChatCompletion, ChatCompletionChunk, ChatWriter
from service.api.openai.fields import TurnRequest
from service.api.openai.gaps import plan_gap
from service.api.request_bodies import read_request
from service.api.requests import Seed, Text
from service.api.respond import acquire, answer, prepare, reserve
from service.api.scope import note_id
from service.serving.generation_request import GenerationRequest

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.serving.served_model import ServedModel

# Mistral's API names no bound. Up to the end of the context would be a screenful of tokens a
# keystroke from a model that does not find its end; this is a long function.
DEFAULT_MAX_TOKENS = 256


class FimRequest(TurnRequest):
    """The body of POST /v1/fim/completions."""

    other_names: ClassVar = {**TurnRequest.other_names, "seed": ("random_seed",)}

    prompt: str = Field(description="The text before the gap; it may be empty.")
    suffix: Text = Field(None, description="The text behind the gap; silence is an empty one.")
    random_seed: Seed = Field(None, description="Another name of seed, Mistral's own.")


def fim_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""

    async def create_fim_completion(http_request: Request) -> Response:
        """Fill the gap between two texts, in Mistral's words.

        At most 256 tokens where max_tokens is silent. What has no room in the context is cut from
        the ends that are farthest from the gap; the header x-truncated-prompt says so.
        """
        request = await read_request(http_request, FimRequest, context)
        model = await acquire(http_request, request.model, context)
        note_id(http_request.scope, request.request_id)
        place = reserve(http_request, model, request.n or 1)
        return await answer(
            http_request,
            await prepare(http_request, plan(request, model), context),
            ChatWriter(request, model),
            is_stream=request.is_stream,
            model=model,
            context=context,
            place=place,
        )

    return [
        Endpoint(
            method="POST",
            path="/v1/fim/completions",
            tag="Mistral",
            handler=create_fim_completion,
            request=FimRequest,
            response=ChatCompletion,
            chunk=ChatCompletionChunk,
            infills=True,
            takes_room=True,
        )
    ]


async def plan(request: FimRequest, model: ServedModel) -> GenerationRequest:
    """Translate a request. Raises a RequestError or TextError."""
    planned = await plan_gap(
        request.prompt, request.suffix or "", request, model, default_max_tokens=DEFAULT_MAX_TOKENS
    )
    options = request.sampling_options(request.num_logprobs)
    return GenerationRequest(
        prompts=[planned.prompt],
        max_tokens=[planned.max_tokens],
        num_choices=request.n or 1,
        options=replace(options, seed=request.value_of("seed")),
        end_token_ids=planned.end_token_ids,
        form=request.answer_form(reports_tokens=bool(request.logprobs)),
        text_form=request.text_form,
        terms=request.terms,
    )
