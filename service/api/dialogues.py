"""A dialogue as token ids or as text, where a request asks for nothing more than that."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from service.api.messages import Message
from service.api.requests import MAX_FIELDS, Forbidden, RequestModel, Unsupported, limits_of
from service.text.render_options import RenderOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.serving.served_model import ServedModel


def _check_messages(messages: object, info: ValidationInfo) -> object:
    limit = limits_of(info).max_messages
    if messages == []:
        raise ValueError("is empty; give at least one message")
    if isinstance(messages, list) and len(messages) > limit:
        raise ValueError(f"has {len(messages)} messages; give at most {limit}")
    return messages


def _check_num_names(kwargs: Mapping[str, object] | None) -> object:
    if kwargs is not None and len(kwargs) > MAX_FIELDS:
        raise ValueError(f"has {len(kwargs)} names; give at most {MAX_FIELDS}")
    return kwargs


# By `Field`, as `FailFast()` itself cannot be part of a union.
Messages: TypeAlias = Annotated[
    list[Message], Field(fail_fast=True), BeforeValidator(_check_messages)
]
TemplateKwargs: TypeAlias = Annotated[
    dict[str, bool | str | int | float | None] | None, AfterValidator(_check_num_names)
]


class DialogueRequest(RequestModel):
    """What a request says of how its dialogue is written."""

    add_generation_prompt: bool | None = Field(
        None, description="false: end with the last message, and open no turn for the assistant."
    )
    continue_final_message: bool | None = Field(
        None, description="End with the last message, an assistant's, open as it stands."
    )
    chat_template_kwargs: TemplateKwargs = Field(
        None, description="Variables of the template's own; others are refused."
    )
    tools: Unsupported = Field(None, description="Not supported yet.")
    chat_template: Forbidden = Field(None, description="Never taken from a request.")

    @property
    def render_options(self) -> RenderOptions:
        """Return what these fields ask of the template."""
        goes_on = bool(self.continue_final_message)
        kwargs = self.chat_template_kwargs or {}
        return RenderOptions(
            add_generation_prompt=self.add_generation_prompt is not False and not goes_on,
            continue_final_message=goes_on,
            template_kwargs={name: one for name, one in kwargs.items() if one is not None},
        )


async def render(
    messages: Sequence[Message], options: RenderOptions, model: ServedModel
) -> list[int]:
    """Return the ids of a dialogue. Raises a TextError."""
    # In a thread: a checkpoint's template runs in another process, which is waited for.
    template = model.require_chat_template()
    return await asyncio.to_thread(template.render, _turns(messages), options)


async def render_text(
    messages: Sequence[Message], options: RenderOptions, model: ServedModel
) -> str:
    """Return a dialogue as text for people. Raises a TextError."""
    template = model.require_chat_template()
    return await asyncio.to_thread(template.render_text, _turns(messages), options)


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]
