"""The turns of a dialogue, as OpenAI's clients send them, or send back what they were sent.

Shared: other APIs take them in the same shape.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from service.api.requests import Ignored, RequestModel, Text, Unsupported, limits_of


class TextPart(RequestModel):
    """A part of a message's content."""

    type: Literal["text"] = Field(description="Parts of other kinds are not taken.")
    text: str = Field(description="What it says.")


def _check_parts(content: object, info: ValidationInfo) -> object:
    # Before their types: pydantic would describe each of a million wrong ones, for seconds.
    limit = limits_of(info).max_messages
    if isinstance(content, list) and len(content) > limit:
        raise ValueError(f"has {len(content)} parts; give at most {limit}")
    # Before the parts' own types, whose findings would not say that this is meant.
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and part.get("type") not in (None, "text"):
            raise PydanticCustomError(
                "unsupported_field", 'this server takes parts of type "text" alone'
            )
    return content


def _check_role(role: object) -> object:
    if role in ("tool", "function"):
        raise PydanticCustomError(
            "unsupported_field", "this server does not support tools yet; leave the turn out"
        )
    return role


class Message(RequestModel):
    """One turn of a dialogue."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant"], BeforeValidator(_check_role)
    ] = Field(description="Whose turn it is; `developer` is another name of `system`.")
    content: Annotated[
        str | Annotated[list[TextPart], Field(fail_fast=True)] | None, BeforeValidator(_check_parts)
    ] = Field(
        None,
        description="Text, or parts of it, which are joined by line breaks; an assistant's may be"
        " empty.",
    )
    name: Text = Field(None, description="Only where the variant's template writes it.")
    reasoning_content: Text = Field(
        None, description="An assistant's thoughts, where the variant's template writes them."
    )
    reasoning: Text = Field(None, description="Another name of reasoning_content.")
    prefix: bool | None = Field(
        None, description="true on the last message: it is the beginning of the answer."
    )
    tool_calls: Unsupported = Field(None, description="Not supported yet.")
    tool_call_id: Unsupported = Field(None, description="Not supported yet.")
    function_call: Unsupported = Field(None, description="Not supported yet.")
    audio: Unsupported = Field(None, description="Not supported.")
    refusal: Ignored
    annotations: Ignored

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError("has no content; give a string, or a list of text parts")
        return self

    @property
    def turn(self) -> dict[str, str | None]:
        """Return the turn as templates are given it."""
        reasoning = self.reasoning_content or self.reasoning
        return {
            "role": self.role,
            "content": self.text,
            "name": self.name,
            "reasoning_content": reasoning,
        }

    @property
    def text(self) -> str:
        """Return the content as one text."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""
