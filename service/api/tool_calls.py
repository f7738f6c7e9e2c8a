"""Calls of tools in an assistant's turn, as clients send them back.

OpenAI's `tool_calls`, with what clients make of streamed ones, and its older `function_call`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from service.api.list_lengths import no_more_than_messages
from service.api.requests import (
    EMPTY_IS_SILENCE,
    MAX_COUNT,
    MAX_NAME_LENGTH,
    Name,
    RequestModel,
    none_if,
)
from service.tools.calls import ToolCall


def _read_arguments(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise ValueError("give the text of a JSON object")
    return value


def _check_type(kind: object) -> object:
    if isinstance(kind, str) and kind != "function":
        raise PydanticCustomError(
            "unsupported_field", 'this server takes calls of type "function" alone'
        )
    return kind


class CalledFunction(RequestModel):
    """The function that was called, and with what."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)] = Field(
        description="Its name."
    )
    arguments: Annotated[
        str,
        PlainValidator(_read_arguments, json_schema_input_type=str | dict[str, Any] | None),
    ] = Field("", description="The text of a JSON object, or the object; silence is {}.")

    def call(self, call_id: str) -> ToolCall:
        """Return it as a call of that id; empty where it has none."""
        return ToolCall(id=call_id, name=self.name, arguments=self.arguments)


class MessageCall(RequestModel):
    """One call of an assistant's turn."""

    id: Name = Field(None, description="What the result of the call refers to.")
    type: Annotated[Literal["function"] | None, BeforeValidator(_check_type), none_if("")] = Field(
        None, description="`function`; other kinds are not taken."
    )
    function: CalledFunction = Field(description="The function that was called.")
    index: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = Field(
        None, description="The call's place among the turn's, where calls come from a stream."
    )


MessageCalls = Annotated[
    list[MessageCall] | None,
    Field(fail_fast=True),
    no_more_than_messages("calls"),
    EMPTY_IS_SILENCE,
]
FunctionCall = Annotated[CalledFunction | None, EMPTY_IS_SILENCE]


def calls_of(
    calls: list[MessageCall] | None, function_call: CalledFunction | None
) -> list[ToolCall]:
    """Return a turn's calls, in the order of their places where all have one."""
    if function_call is not None:
        return [function_call.call("")]
    given = calls or []
    places = [call.index for call in given if call.index is not None]
    if len(places) == len(given):
        given = [
            call for _, call in sorted(zip(places, given, strict=True), key=lambda pair: pair[0])
        ]
    return [call.function.call(call.id or "") for call in given]
