"""The items of a request's `input`, and the dialogue that they are.

Clients send what they were sent before, so an item may lack its id, its status or its type. What a
model said in one turn came as several items (reasoning, a message, calls) and is one turn again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from service.api.list_lengths import require_few
from service.api.requests import (
    MAX_NAME_LENGTH,
    NO_EFFECT,
    Ignored,
    Name,
    RequestModel,
    Text,
    is_empty,
    limits_of,
)
from service.errors import InvalidFieldError
from service.tools.calls import ToolCall

if TYPE_CHECKING:
    from collections.abc import Sequence

_CALLS = ("function_call", "custom_tool_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_KNOWN = ("message", "reasoning", *_CALLS, *_OUTPUTS)
# Between what were several messages of one speaker: many templates take turns that alternate alone.
_BETWEEN = "\n\n"
# By the part's type, the field that holds its text.
_TEXTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "summary_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
}


def _text_if_silent(kind: object) -> object:
    return "text" if is_empty(kind) else kind


class ContentPart(RequestModel):
    """A part of an item's content."""

    type: Annotated[
        Literal["input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal"],
        BeforeValidator(_text_if_silent),
    ] = Field("text", description="Parts of other kinds, images and files, are not taken.")
    text: str | None = Field(None, description="What it says.")
    refusal: str | None = Field(None, description="What it says, with type `refusal`.")
    annotations: Ignored
    logprobs: Ignored

    @model_validator(mode="after")
    def _has_text(self) -> ContentPart:
        if getattr(self, _TEXTS[self.type]) is None:
            raise ValueError(f"has no {_TEXTS[self.type]}; give it")
        return self

    @property
    def said(self) -> str:
        """Return its text."""
        said: str = getattr(self, _TEXTS[self.type])
        return said


def _read_content(content: object, info: ValidationInfo) -> object:
    """Take a text as its one part, so that what is wrong is told of parts alone."""
    if isinstance(content, str):
        return [{"text": content}]
    if content is None:
        return None
    if not isinstance(content, list):
        raise ValueError("give a text, or a list of parts")
    require_few(content, limits_of(info).max_messages, "parts")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind and kind not in _TEXTS:
            raise PydanticCustomError("unsupported_field", "this server takes parts of text alone")
    return content


Content = Annotated[
    Annotated[list[ContentPart], Field(fail_fast=True)] | None,
    BeforeValidator(_read_content, json_schema_input_type=str | list[ContentPart] | None),
]


def text_of(content: Sequence[ContentPart] | None) -> str:
    """Return a content as one text; its parts are lines."""
    return "\n".join(part.said for part in content or ())


class InputItem(RequestModel):
    """Something that was said, thought, called or answered by a tool."""

    type: str = Field(
        "message",
        max_length=MAX_NAME_LENGTH,
        description="`message`, `reasoning`, `function_call`, `function_call_output`,"
        " `custom_tool_call` or `custom_tool_call_output`; items of other types are left out, and"
        " named as ignored.",
    )
    id: Text = Field(None, description="Whatever it is: the order of items counts.")
    status: Text = Field(None, description="Whatever it is.")
    role: Literal["system", "developer", "user", "assistant"] | None = Field(
        None, description="Of a message; `developer` is another name of `system`."
    )
    content: Content = Field(None, description="Of a message or reasoning: text, or parts of it.")
    summary: Content = Field(None, description="Of reasoning; read where it has no content.")
    encrypted_content: Text = Field(
        None, description="Cannot be read here.", json_schema_extra=NO_EFFECT
    )
    call_id: Name = Field(None, description="Which call it is, or answers.")
    name: Name = Field(None, description="Of the tool that is called.")
    arguments: str | None = Field(None, description="Of a function call: JSON.")
    input: str | None = Field(None, description="Of a custom tool's call.")
    output: Content = Field(None, description="What a tool answered: text, or parts of it.")
    phase: Ignored

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_unknown(cls, item: object) -> object:
        if not isinstance(item, dict):
            return item
        kind = item.get("type")
        if kind == "item_reference":
            raise PydanticCustomError(
                "unsupported_field",
                "refers to what a server keeps, and this one keeps nothing; send the item itself,"
                " as clients do that are told store: false",
            )
        if kind is None or kind == "":
            return {name: value for name, value in item.items() if name != "type"}
        return item if kind in _KNOWN else {"type": kind}

    @model_validator(mode="after")
    def _is_whole(self) -> InputItem:
        required: dict[str, tuple[str, ...]] = {
            "message": ("role",),
            "function_call": ("call_id", "name"),
            "custom_tool_call": ("call_id", "name"),
            "function_call_output": ("call_id",),
            "custom_tool_call_output": ("call_id",),
        }
        missing = [name for name in required.get(self.type, ()) if getattr(self, name) is None]
        if missing:
            raise ValueError(f"is of type {self.type!r} and has no {missing[0]}; give it")
        if self.type == "message" and self.content is None and self.role != "assistant":
            raise ValueError("has no content; give a text, or a list of parts")
        return self

    def own_ignored(self) -> list[str]:
        """Name what has no effect; of an item that is left out, its type."""
        return super().own_ignored() if self.type in _KNOWN else [self.type]

    @property
    def said(self) -> str:
        """Return what a message says, or what was thought."""
        return text_of(self.content) or text_of(self.summary)

    @property
    def call(self) -> ToolCall:
        """Return the call that it is."""
        arguments = self.arguments or ""
        if self.type == "custom_tool_call":
            arguments = json.dumps({"input": self.input or ""}, ensure_ascii=False)
        return ToolCall(self.call_id or "", self.name or "", arguments)


def _read_items(items: object, info: ValidationInfo) -> object:
    """Take a text as the user's message, so that what is wrong is told of items alone."""
    if not isinstance(items, str | list):
        raise ValueError("give a text, or a list of items")
    if not items:
        raise ValueError("is empty; give a text, or a list of items")
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    require_few(items, limits_of(info).max_messages, "items")
    return items


Items = Annotated[
    list[InputItem],
    Field(fail_fast=True),
    BeforeValidator(_read_items, json_schema_input_type=str | list[InputItem]),
]


def dialogue_of(items: Sequence[InputItem], instructions: str | None) -> list[dict[str, Any]]:
    """Return the turns that templates are given: of each speaker in a row, one.

    What the system says stands at the beginning, wherever it was said: there all templates take it.
    Raises InvalidFieldError for the output of a call that is not there, or where nothing is left.
    """
    turns = _Turns()
    if instructions:
        turns.say("system", instructions)
    for number, item in enumerate(items):
        turns.add(item, number)
    told = [turn.fields for turn in (turns.system, *turns.turns) if turn.says_something]
    if not told:
        raise InvalidFieldError("input: holds no message; give one", param="input")
    return told


@dataclass
class _Turn:
    """One turn as it grows; its texts are joined once, as there may be thousands."""

    role: str
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    of_call: dict[str, str] = field(default_factory=dict)  # of a tool's: which call it answers

    @property
    def says_something(self) -> bool:
        """Whether there is a turn at all; of the system there may be none."""
        return self.role != "system" or bool(self.texts)

    @property
    def fields(self) -> dict[str, Any]:
        """Return the turn as templates are given it."""
        told: dict[str, Any] = {"role": self.role, "content": _joined(self.texts), **self.of_call}
        if thought := _joined(self.thoughts):
            told["reasoning_content"] = thought
        if self.calls:
            told["tool_calls"] = self.calls
        return told


def _joined(texts: Sequence[str]) -> str:
    return _BETWEEN.join(text for text in texts if text)


class _Turns:
    """Gathers items into turns."""

    def __init__(self) -> None:
        self.system = _Turn("system")
        self.turns: list[_Turn] = []  # of all others
        self._names: dict[str, str] = {}  # of the tools called, by the call's id

    def add(self, item: InputItem, number: int) -> None:
        if item.type == "message":
            role = "system" if item.role == "developer" else str(item.role)
            self.say(role, item.said)
        elif item.type == "reasoning":
            if item.said:
                self._of("assistant").thoughts.append(item.said)
        elif item.type in _CALLS:
            call = item.call
            self._of("assistant").calls.append(call)
            self._names[call.id] = call.name
        elif item.type in _OUTPUTS:
            self._hear(item, number)

    def say(self, role: str, text: str) -> None:
        turn = self.system if role == "system" else self._of(role)
        turn.texts.append(text)

    def _hear(self, item: InputItem, number: int) -> None:
        call_id = item.call_id or ""
        if call_id not in self._names:
            where = f"input.{number}.call_id"
            raise InvalidFieldError(
                f"{where}: answers a call that is not before it; send the call, too", param=where
            )
        of_call = {"tool_call_id": call_id, "name": self._names[call_id]}
        self.turns.append(_Turn("tool", [text_of(item.output)], of_call=of_call))

    def _of(self, role: str) -> _Turn:
        """Return the turn of a speaker: the last one, or one that begins."""
        if not self.turns or self.turns[-1].role != role:
            self.turns.append(_Turn(role))
        return self.turns[-1]
