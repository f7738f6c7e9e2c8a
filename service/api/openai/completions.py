"""POST /v1/completions: text on from where a prompt ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo
from pydantic import model_validator as check_together

from engine.sampling_params import MAX_LOGPROBS
from loaders.checkpoint.rust_panics import panics_as
from service.api.endpoint import Endpoint
from service.api.openai.completion_answers import Completion, CompletionChunk, CompletionWriter
from service.api.openai.fields import OpenAIRequest
from service.api.openai.gaps import fill_gap
from service.api.openai.truncation import DEFAULT_MAX_TOKENS, truncated
from service.api.request_bodies import read_request
from service.api.requests import NumChoices, Text, is_token_ids, limits_of
from service.api.respond import acquire, answer
from service.api.scope import note_id
from service.errors import InvalidFieldError
from service.serving.generation_request import GenerationRequest
from service.serving.prompts import Prompt, room_behind
from service.text.backend import fast_backend
from service.text.errors import broken_tokenizer
from service.text.prompt import encode_prompt

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from service.api.context import ApiContext
    from service.serving.sampling import SamplingOptions
    from service.serving.served_model import ServedModel

_PROMPT_FORMS = (
    "give a string, a list of strings, a list of token ids (integers of at least 0), "
    "or a list of such lists"
)


def _read_prompts(prompt: object, info: ValidationInfo) -> list[str | list[int]]:
    """Bring the four forms of `prompt` into one: a list of texts and lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise ValueError(_PROMPT_FORMS)
    if not prompt:
        raise ValueError("is empty; give at least one prompt")
    if is_token_ids(prompt):
        return [prompt]
    limit = limits_of(info).max_prompts
    if len(prompt) > limit:
        raise ValueError(f"has {len(prompt)} prompts; give at most {limit}")
    if all(isinstance(item, str) for item in prompt):
        return list(prompt)
    if all(is_token_ids(item) for item in prompt):
        if not all(prompt):
            raise ValueError("holds an empty list of token ids; give at least one token id in each")
        return list(prompt)
    raise ValueError(_PROMPT_FORMS)


def _none_if_false(value: object) -> object:
    return None if value is False else value


NumLogprobs = Annotated[
    Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None, BeforeValidator(_none_if_false)
]
_PromptForms = str | list[str] | list[int] | list[list[int]]


class CompletionRequest(OpenAIRequest):
    """The body of POST /v1/completions."""

    other_names: ClassVar = OpenAIRequest.other_names

    prompt: Annotated[
        Sequence[str | list[int]],
        PlainValidator(_read_prompts, json_schema_input_type=_PromptForms),
    ] = Field(description="One prompt or several, as text or as token ids.")
    suffix: Text = Field(
        None,
        description="What follows the answer: the variant fills in the middle, if it can. Prompts"
        " must be texts.",
    )
    echo: bool | None = Field(None, description="Begin each answer with its prompt.")
    best_of: NumChoices = Field(
        None,
        description="Make so many choices of each prompt and return the n of highest mean logprob;"
        " not with stream.",
    )
    logprobs: NumLogprobs = Field(
        None, description="Tell each token's logprob, and so many likeliest ones."
    )
    add_special_tokens: bool | None = Field(
        None, description="false: a prompt given as text gets no BOS. true by default."
    )

    @check_together(mode="after")
    def _choices_agree(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError(f"best_of is {self.best_of} and n {self.n}; give at least n")
        if self.stream and (self.best_of or 1) > (self.n or 1):
            raise ValueError("best_of cannot be streamed; leave it out, or leave out stream")
        return self

    @check_together(mode="after")
    def _gap_agrees(self) -> CompletionRequest:
        if self.suffix is None:
            return self
        if not all(isinstance(prompt, str) for prompt in self.prompt):
            raise ValueError("with suffix, give prompt as text: its ids are put together here")
        if self.add_special_tokens is False:
            raise ValueError("with suffix, leave out add_special_tokens: the gap's form needs them")
        if self.echo and self.logprobs is not None:
            raise ValueError("with suffix, echo has no logprobs: leave out one of the three")
        return self

    @property
    def num_choices(self) -> int:
        """Return how many choices to make of each prompt."""
        return self.best_of or self.n or 1


def completion_endpoints(context: ApiContext) -> list[Endpoint]:
    """Return the endpoint."""

    async def create_completion(http_request: Request) -> Response:
        """Continue each prompt; at most 16 tokens where max_tokens is silent."""
        context.lifecycle.require_open()
        request = await read_request(http_request, CompletionRequest, context)
        model = await acquire(http_request, request.model, context)
        note_id(http_request.scope, request.request_id)
        planned = await plan(request, model)
        writer = CompletionWriter(request, model)
        return await answer(
            http_request,
            planned,
            writer,
            is_stream=request.is_stream,
            model=model,
            context=context,
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
        )
    ]


async def plan(request: CompletionRequest, model: ServedModel) -> GenerationRequest:
    """Translate a request. Raises a RequestError or TextError."""
    if request.suffix is not None:
        return await _plan_gaps(request, request.suffix, model)
    prompts = [await _read_prompt(prompt, request, model) for prompt in request.prompt]
    asked = request.value_of("max_tokens")
    rooms = [
        room_behind(
            len(prompt.token_ids),
            asked,
            model.engine.max_model_len,
            prompt_param="prompt",
            length_param=request.given_name_of("max_tokens"),
        )
        for prompt in prompts
    ]
    return GenerationRequest(
        prompts=prompts,
        max_tokens=[min(DEFAULT_MAX_TOKENS, room) if asked is None else asked for room in rooms],
        num_choices=request.num_choices,
        options=_sampling_options(request),
        form=request.answer_form(
            echoes=bool(request.echo), tells_tokens=request.logprobs is not None
        ),
        terms=request.terms,
    )


async def _plan_gaps(
    request: CompletionRequest, suffix: str, model: ServedModel
) -> GenerationRequest:
    planned = [
        await fill_gap(
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
            echoes=bool(request.echo), tells_tokens=request.logprobs is not None
        ),
        terms=request.terms,
    )


def _sampling_options(request: CompletionRequest) -> SamplingOptions:
    is_ranked = request.num_choices > (request.n or 1)
    # To rank choices, their tokens' logprobs are needed also where nobody is told of them.
    logprobs = 0 if is_ranked and request.logprobs is None else request.logprobs
    options = request.sampling_options(logprobs)
    if not request.echo or request.logprobs is None:
        return options
    told = max(request.logprobs, request.prompt_logprobs or 0)
    return replace(options, prompt_logprobs=told)


async def _read_prompt(
    prompt: str | list[int], request: CompletionRequest, model: ServedModel
) -> Prompt:
    if isinstance(prompt, str):
        # Beside the event loop, however short it is: some expressions are slow on short texts.
        token_ids: Sequence[int] = await asyncio.to_thread(
            encode_prompt,
            model.tokenizer,
            prompt,
            add_special_tokens=request.add_special_tokens is not False,
        )
        if not token_ids:
            raise InvalidFieldError("prompt: is empty; give at least one character", param="prompt")
    else:
        token_ids = prompt
    kept = truncated(token_ids, request, model)
    if not request.echo:
        return Prompt(kept)
    if isinstance(prompt, str) and len(kept) == len(token_ids):
        return Prompt(kept, prompt)
    skips = request.skip_special_tokens is not False
    with panics_as(broken_tokenizer):
        text = fast_backend(model.tokenizer).decode(list(kept), skip_special_tokens=skips)
    return Prompt(kept, text)
