"""The turns of a dialogue, as OpenAI's clients send them, or send back what they were sent.

Shared: other APIs take them in the same shape.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from service.api.list_lengths import require_few
from service.api.requests import Ignored, Name, RequestModel, Text, Unsupported, limits_of
from service.api.tool_calls import FunctionCall, MessageCalls, calls_of

# What belongs to the turns of one role.
_ONLY_OF = {"tool_calls": "assistant", "function_call": "assistant", "tool_call_id": "tool"}
_MAY_SAY_NOTHING = ("assistant", "tool", "function")


class TextPart(RequestModel):
    """A part of a message's content."""

    type: Literal["text"] = Field(description="Parts of other kinds are not taken.")
    text: str = Field(description="What it says.")


def _check_parts(content: object, info: ValidationInfo) -> object:
    if not isinstance(content, list):
        return content
    require_few(content, limits_of(info).max_messages, "parts")
    # Before the parts' own types, whose findings would not say that this is meant.
    for part in content:
        if isinstance(part, dict) and part.get("type") not in (None, "text"):
            raise PydanticCustomError(
                "unsupported_field", 'this server takes parts of type "text" alone'
            )
    return content


class Message(RequestModel):
    """One turn of a dialogue."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"] = Field(
        description="Whose turn it is; `developer` is another name of `system`. `tool`: the result"
        " of a call; `function` is its older spelling."
    )
    content: Annotated[
        str | Annotated[list[TextPart], Field(fail_fast=True)] | None, BeforeValidator(_check_parts)
    ] = Field(
        None,
        description="Text, or parts of it, which are joined by line breaks; an assistant's and a"
        " tool's may be empty.",
    )
    name: Text = Field(
        None,
        description="Only where the variant's template writes it. Of a result: the function's name,"
        " by which its call is found where ids are left out.",
    )
    reasoning_content: Text = Field(
        None, description="An assistant's thoughts, where the variant's template writes them."
    )
    reasoning: Text = Field(
        None, description="Another name of reasoning_content; where both are given they are equal."
    )
    prefix: bool | None = Field(
        None, description="true on the last message: it is the beginning of the answer."
    )
    tool_calls: MessageCalls = Field(None, description="What an assistant called.")
    tool_call_id: Name = Field(
        None,
        description="With role `tool`: the call whose result it is. Results may come in any order;"
        " those without an id belong to the calls of their name, or in their order.",
    )
    function_call: FunctionCall = Field(
        None, description="The older spelling of tool_calls, for one call."
    )
    audio: Unsupported = Field(None, description="Not supported.")
    refusal: Ignored
    annotations: Ignored

    @model_validator(mode="after")
    def _fits_its_role(self) -> Message:
        if self.content is None and self.role not in _MAY_SAY_NOTHING:
            raise ValueError("has no content; give a string, or a list of text parts")
        for name, owner in _ONLY_OF.items():
            if getattr(self, name) is not None and self.role != owner:
                raise ValueError(
                    f"is of role {self.role} and has {name}, which only role {owner} has"
                )
        if self.tool_calls and self.function_call:
            raise ValueError("tool_calls and function_call mean the same; give one of them")
        thoughts = {self.reasoning_content, self.reasoning} - {None, ""}
        if len(thoughts) > 1:
            raise ValueError("reasoning_content and reasoning mean the same and differ; give one")
        if self.role == "function" and not self.name:
            raise ValueError("is a function's result without its name; give it")
        return self

    @property
    def turn(self) -> dict[str, Any]:
        """Return the turn as `service.serving.turns.AskedTurn` takes it."""
        reasoning = self.reasoning_content or self.reasoning
        turn: dict[str, Any] = {
            "role": "tool" if self.is_result else self.role,
            "content": self.text,
            "name": self.name,
            "reasoning_content": reasoning,
        }
        if calls := calls_of(self.tool_calls, self.function_call):
            turn["tool_calls"] = calls
        if self.tool_call_id:
            turn["tool_call_id"] = self.tool_call_id
        return turn

    @property
    def is_result(self) -> bool:
        """Whether it is the result of a call."""
        return self.role in ("tool", "function")

    @property
    def text(self) -> str:
        """Return the content as one text."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""
