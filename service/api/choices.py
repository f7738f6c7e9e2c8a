"""Turns a checked request into what the engine shall run: prompts and sampling settings.

Here the request meets the served model: its name, template, context and recommended settings.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.sampling_params import MAX_SEED, SamplingParams
from loaders.checkpoint.rust_panics import panics_as
from service.errors import ContextLengthError, InvalidFieldError
from service.serving.generation import PlannedChoice, Prompt
from service.text.errors import broken_tokenizer
from service.text.prompt import encode_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.api.requests import ChatRequest, CompletionRequest, GenerationRequest, Message
    from service.serving.served_model import ServedModel

# OpenAI's own default for completions; chat takes what is left of the context.
COMPLETION_MAX_TOKENS = 16


async def plan_completion(request: CompletionRequest, model: ServedModel) -> list[PlannedChoice]:
    """Return the choices in the order of their index: all of the first prompt, then the next."""
    prompts = [await _read_prompt(prompt, request, model) for prompt in request.prompt]
    planned: list[PlannedChoice] = []
    for prompt in prompts:
        room = _room(prompt, request, model, param="prompt")
        planned += _plan(prompt, request, model, default=min(COMPLETION_MAX_TOKENS, room))
    return planned


async def plan_chat(request: ChatRequest, model: ServedModel) -> list[PlannedChoice]:
    """Return the choices in the order of their index."""
    prompt = Prompt(await _render(request.messages, model))
    room = _room(prompt, request, model, param="messages")
    return _plan(prompt, request, model, default=room)


async def _read_prompt(
    prompt: str | list[int], request: CompletionRequest, model: ServedModel
) -> Prompt:
    if isinstance(prompt, str):
        # Beside the event loop, however short it is: some expressions are slow on short texts.
        token_ids = await asyncio.to_thread(encode_prompt, model.tokenizer, prompt)
        if not token_ids:
            raise InvalidFieldError("prompt: is empty; give at least one character", param="prompt")
        return Prompt(token_ids, echo=prompt if request.echo else "")
    with panics_as(broken_tokenizer):
        echo = model.tokenizer.decode(prompt, skip_special_tokens=True) if request.echo else ""
    return Prompt(prompt, echo=str(echo))


async def _render(messages: Sequence[Message], model: ServedModel) -> list[int]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    # In a thread: a checkpoint's template runs in another process, which is waited for.
    return await asyncio.to_thread(model.require_chat_template().render, turns)


def _room(prompt: Prompt, request: GenerationRequest, model: ServedModel, *, param: str) -> int:
    """Return how many tokens may follow the prompt; raise where the request asks for more."""
    num_prompt_tokens, limit = len(prompt.token_ids), model.engine.max_model_len
    room = limit - num_prompt_tokens
    asked = request.asked_max_tokens
    if room < 1:
        raise ContextLengthError(
            f"the prompt has {num_prompt_tokens} tokens, and this model's context is {limit}"
            " tokens, answer included; shorten the prompt",
            param=param,
        )
    if asked is not None and asked > room:
        raise ContextLengthError(
            f"the prompt has {num_prompt_tokens} tokens and max_tokens asks for {asked} more, but"
            f" this model's context is {limit} tokens; ask for at most {room}, or shorten the"
            " prompt",
            param="max_tokens" if request.max_tokens is not None else "max_completion_tokens",
        )
    return room


def _plan(
    prompt: Prompt, request: GenerationRequest, model: ServedModel, *, default: int
) -> list[PlannedChoice]:
    """Plan a prompt's choices; default: most tokens of each where the request is silent."""
    asked = request.asked_max_tokens
    params = _sampling_params(request, model, default if asked is None else asked)
    return [
        PlannedChoice(prompt, replace(params, seed=_seed(request.seed, index)))
        for index in range(request.num_choices)
    ]


def _sampling_params(
    request: GenerationRequest, model: ServedModel, max_tokens: int
) -> SamplingParams:
    """Take each setting from the request, else from the variant, else leave it neutral."""
    defaults = model.defaults
    temperature = _first(request.temperature, defaults.temperature, 1.0)
    top_p = _first(request.top_p, defaults.top_p, 1.0)
    top_k = defaults.top_k if request.top_k is None else request.top_k
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k if top_k is not None and top_k > 0 else None,
        eos_token_ids=model.stop_token_ids,
    )


def _first(asked: float | None, recommended: float | None, neutral: float) -> float:
    if asked is not None:
        return asked
    return neutral if recommended is None else recommended


def _seed(seed: int | None, index: int) -> int | None:
    """Give each choice its own random stream, the first one that of a request for one choice."""
    return None if seed is None else (seed + index) % (MAX_SEED + 1)
