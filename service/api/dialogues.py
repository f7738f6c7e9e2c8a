"""From a request's dialogue to the ids of a prompt: what the variant's template is given, and told.

Shared by the APIs that take dialogues. What the template has no use for is named to the client, as
any field without effect is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from service.api.list_lengths import FEW_MESSAGES, at_most
from service.api.messages import Message
from service.api.requests import EMPTY_IS_SILENCE, MAX_FIELDS, Name
from service.api.tool_fields import ToolRequest
from service.errors import InvalidFieldError
from service.serving.turn_prompts import AskedTurn, render_turn, render_turn_text
from service.text.render_options import RenderOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.serving.served_model import ServedModel
    from service.text.render_options import KwargValue
    from service.text.templates import ChatTemplate

EFFORT = "reasoning_effort"  # a field of requests that templates know by the same name
_FEW_ITEMS = at_most(MAX_FIELDS, "items")


# By `Field`, as `FailFast()` itself cannot be part of a union.
Messages: TypeAlias = Annotated[list[Message], Field(fail_fast=True), FEW_MESSAGES]
TemplateKwargs: TypeAlias = Annotated[
    dict[str, bool | str | int | float | None] | None,
    _FEW_ITEMS,
    EMPTY_IS_SILENCE,
]
Documents: TypeAlias = Annotated[
    list[Annotated[dict[str, str], _FEW_ITEMS]] | None,
    _FEW_ITEMS,
    EMPTY_IS_SILENCE,
]


class DialogueRequest(ToolRequest):
    """A dialogue, what tools there are in it, and how the template is to write it."""

    messages: Messages | None = Field(None, description="A dialogue, oldest turn first.")
    add_generation_prompt: bool | None = Field(
        None, description="false: end with the last message, and open no turn for the assistant."
    )
    continue_final_message: bool | None = Field(
        None, description="The last message is the beginning of the answer, which goes on from it."
    )
    chat_template_kwargs: TemplateKwargs = Field(
        None,
        description="Variables of the template's own; others are named as ignored.",
    )
    documents: Documents = Field(
        None, description="Texts to cite, for templates that do; refused where one does not."
    )
    reasoning_effort: Name = Field(
        None, description="Given to the template, if it takes it; else named as ignored."
    )


def asked_turn(request: DialogueRequest, model: ServedModel) -> AskedTurn:
    """Return what a request asks of its dialogue. Raises InvalidFieldError."""
    return AskedTurn(
        messages=[message.turn for message in request.messages or ()],
        tools=request.tool_use,
        options=options_for(model.require_chat_template(), request),
        schema_param=request.schema_param,
    )


async def render(
    request: DialogueRequest, model: ServedModel, *, keep_last: int | None = None
) -> list[int]:
    """Return the ids of a dialogue, by default up to where the assistant speaks next.

    keep_last: so many of the last are wanted alone. Raises a RequestError or TextError.
    """
    asked = asked_turn(request, model)
    options = replace(asked.options, keep_last=keep_last)
    return (await render_turn(replace(asked, options=options), model)).token_ids


async def render_text(request: DialogueRequest, model: ServedModel) -> str:
    """Return the same as text for people. Raises a RequestError or TextError."""
    return await render_turn_text(asked_turn(request, model), model)


def options_for(template: ChatTemplate, request: DialogueRequest) -> RenderOptions:
    """Return how the template is to render. Raises InvalidFieldError."""
    goes_on = bool(request.continue_final_message) or _ends_with_prefix(request.messages or ())
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


def unread(request: DialogueRequest, model: ServedModel) -> list[str]:
    """Name what the variant's template does not read, and so has no effect."""
    template = model.require_chat_template()
    names = [*request.unused]
    names += [
        f"chat_template_kwargs.{name}"
        for name, value in (request.chat_template_kwargs or {}).items()
        if value is not None and name not in template.kwargs_names
    ]
    if request.reasoning_effort and EFFORT not in template.kwargs_names:
        names.append(EFFORT)
    for name in ("name", "reasoning_content", "reasoning"):
        is_given = any(
            getattr(message, name)
            for message in request.messages or ()
            if not (name == "name" and message.is_result)  # by which its call is found
        )
        if is_given and not template.reads("name" if name == "name" else "reasoning_content"):
            names.append(f"messages[].{name}")
    return names


def _kwargs(request: DialogueRequest) -> dict[str, KwargValue]:
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
    return bool(messages and messages[-1].prefix)
