"""From a request's dialogue to the ids of a prompt: what the variant's template is given, and told.

What the template has no use for is named to the client, as any field without effect is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service.errors import InvalidFieldError
from service.text.render_options import RenderOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.api.openai.chat import ChatRequest
    from service.api.openai.messages import Message
    from service.serving.served_model import ServedModel
    from service.text.render_options import KwargValue
    from service.text.templates import ChatTemplate

EFFORT = "reasoning_effort"  # a field of requests that templates know by the same name


async def render(request: ChatRequest, model: ServedModel) -> list[int]:
    """Return the ids of a dialogue, by default up to where the assistant speaks next.

    Raises a RequestError or TextError.
    """
    template = model.require_chat_template()
    turns = [message.turn for message in request.messages]
    # In a thread: a checkpoint's template runs in another process, which is waited for.
    return await asyncio.to_thread(template.render, turns, options_for(template, request))


def options_for(template: ChatTemplate, request: ChatRequest) -> RenderOptions:
    """Return how the template is to render. Raises InvalidFieldError."""
    goes_on = bool(request.continue_final_message) or _ends_with_prefix(request.messages)
    if goes_on and request.add_generation_prompt:
        raise InvalidFieldError(
            "add_generation_prompt: opens another turn, where the last message is to be continued;"
            " leave it out",
            param="add_generation_prompt",
        )
    return RenderOptions(
        add_generation_prompt=request.add_generation_prompt is not False and not goes_on,
        continue_final_message=goes_on,
        template_kwargs={
            name: value for name, value in _kwargs(request).items() if name in template.kwargs_names
        },
        documents=request.documents,
    )


def unread(request: ChatRequest, model: ServedModel) -> list[str]:
    """Name what the variant's template does not read, and so has no effect."""
    template = model.require_chat_template()
    names = [
        f"chat_template_kwargs.{name}"
        for name, value in (request.chat_template_kwargs or {}).items()
        if value is not None and name not in template.kwargs_names
    ]
    if request.reasoning_effort and EFFORT not in template.kwargs_names:
        names.append(EFFORT)
    for name in ("name", "reasoning_content", "reasoning"):
        is_given = any(getattr(message, name) for message in request.messages)
        if is_given and not template.reads("name" if name == "name" else "reasoning_content"):
            names.append(f"messages[].{name}")
    return names


def _kwargs(request: ChatRequest) -> dict[str, KwargValue]:
    effort = {EFFORT: request.reasoning_effort} if request.reasoning_effort else {}
    given = {**effort, **(request.chat_template_kwargs or {})}
    return {name: value for name, value in given.items() if value is not None}


def _ends_with_prefix(messages: Sequence[Message]) -> bool:
    for number, message in enumerate(messages):
        if message.prefix and (message is not messages[-1] or message.role != "assistant"):
            raise InvalidFieldError(
                f"messages.{number}.prefix: only the last message, an assistant's, can be the"
                " beginning of the answer",
                param=f"messages.{number}.prefix",
            )
    return bool(messages[-1].prefix)
