"""The tools of a request, in the Responses API's flat shape, and what is asked of their use.

A custom tool takes a text as it is. To the model it is a function of one argument, `input`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from service.api.list_lengths import at_most
from service.api.requests import (
    EMPTY_IS_SILENCE,
    MAX_NAME_LENGTH,
    RequestModel,
    Text,
    is_neutral,
    none_if,
)
from service.api.tool_fields import MAX_TOOL_CHARACTERS, MAX_TOOLS, ToolName
from service.tools.calls import NO_TOOLS, Tool, ToolMode, ToolUse

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_KNOWN = ("function", "custom")
_CHOICES = (*_KNOWN, "allowed_tools")
_VERSION = re.compile(r"(?<!_)_?(?:preview|\d).*")  # as in web_search_preview_2025_03_11
MAX_LISTED = 512  # tools, also those that are left out
_ONE_TEXT: dict[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


def _bare_if_unknown(value: object, known: Collection[str]) -> object:
    """Leave nothing but the type of what has one that this server does not know."""
    kind = value.get("type") if isinstance(value, dict) else None
    return {"type": kind} if isinstance(kind, str) and kind not in known else value


OptionalName = Annotated[ToolName | None, none_if("")]


class CustomFormat(RequestModel):
    """What a custom tool's text is like."""

    type: Literal["text", "grammar"] = Field("text", description="`text` is any.")
    syntax: Text = Field(None, description="Of the grammar: `lark` or `regex`.")
    definition: Text = Field(
        None,
        description="The grammar: the model is told it. A `regex` is followed, too; what is written"
        " in another syntax is not, and is named as ignored.",
    )

    @property
    def told(self) -> str:
        """Return what the model is told of it; nothing where the text is any."""
        if self.type == "text" or not self.definition:
            return ""
        return f"`input` follows this grammar ({self.syntax or 'a'}):\n{self.definition}"

    @property
    def pattern(self) -> str | None:
        """Return the regular expression that the text matches, if it must match one."""
        is_followed = self.type == "grammar" and self.syntax == "regex"
        return self.definition or None if is_followed else None

    def own_ignored(self) -> list[str]:
        """Name what is not followed.

        The text travels as a JSON string, in which a regular expression can be followed, and a
        grammar of rules cannot.
        """
        given = [name for name in ("syntax", "definition") if getattr(self, name)]
        if self.type == "grammar" and self.definition:
            given = [] if self.pattern is not None else ["definition"]
        return [*super().own_ignored(), *given]


class OfferedTool(RequestModel):
    """A tool that the model may call."""

    type: str = Field(
        max_length=MAX_NAME_LENGTH,
        description="`function` or `custom`; tools of other types are left out, and named as"
        " ignored.",
    )
    name: OptionalName = Field(None, description="1 to 64 letters, digits, _ and -.")
    description: Text = Field(None, description="What it does; the model is told it.")
    parameters: Annotated[dict[str, Any] | None, EMPTY_IS_SILENCE] = Field(
        None, description="Of a function: a JSON schema of its arguments."
    )
    strict: bool | None = Field(None, description="Arguments follow the schema strictly.")
    format: Annotated[CustomFormat | None, EMPTY_IS_SILENCE] = Field(
        None, description="Of a custom tool: what its text is like."
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_unknown(cls, tool: object) -> object:
        return _bare_if_unknown(tool, _KNOWN)

    @model_validator(mode="after")
    def _has_name(self) -> OfferedTool:
        if self.is_used and self.name is None:
            raise ValueError("has no name; give one")
        return self

    @property
    def is_used(self) -> bool:
        """Whether it is of a type that this server knows."""
        return self.type in _KNOWN

    def own_ignored(self) -> list[str]:
        """Name what has no effect; of a tool that is left out, its type."""
        if not self.is_used:
            return [self.type]
        others = ("format",) if self.type == "function" else ("parameters", "strict")
        return [
            *super().own_ignored(),
            *(name for name in others if not is_neutral(getattr(self, name))),
        ]

    @property
    def schema_field(self) -> str:
        """Return the field that says what calls of it are like."""
        return "parameters" if self.type == "function" else "format.definition"

    @property
    def tool(self) -> Tool:
        """Return it as the model is told of it."""
        name, description = self.name or "", self.description or ""
        if self.type == "function":
            return Tool(name, description, self.parameters, is_strict=bool(self.strict))
        pattern = None
        if self.format is not None:
            description += f"\n\n{self.format.told}"
            pattern = self.format.pattern
        return Tool(
            name, description.strip(), _ONE_TEXT, is_strict=pattern is not None, pattern=pattern
        )


OfferedTools = Annotated[
    Annotated[list[OfferedTool], Field(fail_fast=True)] | None,
    at_most(MAX_LISTED, "tools"),
    EMPTY_IS_SILENCE,
]


class ResponseToolChoice(RequestModel):
    """Which tool must be called, or which may be."""

    type: str = Field(
        max_length=MAX_NAME_LENGTH,
        description="`function` and `custom` name one tool, `allowed_tools` several; the type of a"
        " tool that is left out is named as ignored, as the tool is.",
    )
    name: OptionalName = Field(None, description="Of the one tool.")
    mode: Literal["auto", "required"] | None = Field(
        None, description="With `allowed_tools`: whether one must be called."
    )
    tools: OfferedTools = Field(None, description="With `allowed_tools`: their types and names.")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_unknown(cls, choice: object) -> object:
        return _bare_if_unknown(choice, _CHOICES)

    @model_validator(mode="after")
    def _is_whole(self) -> ResponseToolChoice:
        wanted = "tools" if self.type == "allowed_tools" else "name"
        if self.is_used and not getattr(self, wanted):
            raise ValueError(f"is of type {self.type!r} and has no {wanted}; give it")
        return self

    @property
    def is_used(self) -> bool:
        """Whether it is of a type that this server knows."""
        return self.type in _CHOICES

    def own_ignored(self) -> list[str]:
        """Name what has no effect; of a choice of what is left out, its type."""
        return super().own_ignored() if self.is_used else [self.type]

    @property
    def names(self) -> set[str]:
        """Return the names of the tools that must or may be called."""
        if self.type != "allowed_tools":
            return {self.name or ""}
        return {tool.name or "" for tool in self.tools or () if tool.is_used}


def check_tools(offered: Sequence[OfferedTool], choice: str | ResponseToolChoice | None) -> None:
    """Raise ValueError for tools that cannot be told apart, or a choice of what is not there."""
    tools = [one.tool for one in offered if one.is_used]
    names = [tool.name for tool in tools]
    if len(tools) > MAX_TOOLS:
        raise ValueError(f"tools has {len(tools)} that may be called; give at most {MAX_TOOLS}")
    if len(set(names)) < len(names):
        raise ValueError("tools has two of one name; give each its own")
    size = sum(len(tool.description) + len(str(tool.parameters)) for tool in tools)
    if size > MAX_TOOL_CHARACTERS:
        raise ValueError(f"tools has {size} characters; give at most {MAX_TOOL_CHARACTERS}")
    if isinstance(choice, ResponseToolChoice) and not choice.is_used:
        if not any(_is_of_type(one, choice.type) for one in offered if not one.is_used):
            raise ValueError("tool_choice is of a type that none of tools has")
        return
    must_be_there = choice == "required" or isinstance(choice, ResponseToolChoice)
    if must_be_there and not tools:
        raise ValueError("tool_choice asks for a call, but there are no tools; give some")
    if isinstance(choice, ResponseToolChoice) and not choice.names <= set(names):
        raise ValueError("tool_choice names a tool that is not among tools")
    if isinstance(choice, ResponseToolChoice) and choice.mode == "required" and not choice.names:
        raise ValueError("tool_choice asks for a call, but allows no tool that may be called")


def _is_of_type(tool: OfferedTool, chosen: str) -> bool:
    """Whether a tool is of the type that is chosen, which may leave out its date."""
    if not chosen or not tool.type.startswith(chosen):
        return False
    return tool.type == chosen or _VERSION.fullmatch(tool.type, len(chosen)) is not None


def tool_use(
    offered: Sequence[OfferedTool],
    choice: str | ResponseToolChoice | None,
    *,
    is_parallel: bool | None,
) -> ToolUse:
    """Return which tools there are, and how they may be used; what `check_tools` lets pass."""
    tools = [one.tool for one in offered if one.is_used]
    if not tools or choice == "none":
        return NO_TOOLS
    if isinstance(choice, ResponseToolChoice) and not choice.is_used:
        choice = None  # left out, as the tool that it names is
    if choice is None or isinstance(choice, str):
        return ToolUse(tools, ToolMode(choice or "auto"), is_parallel=is_parallel)
    if not choice.names:  # it allows tools of other types alone
        return NO_TOOLS
    if choice.type == "allowed_tools":
        mode = ToolMode(choice.mode or "auto")
        return ToolUse(tools, mode, is_parallel=is_parallel, allowed=choice.names)
    # Named tools are called once, as by OpenAI's own models.
    return ToolUse(tools, ToolMode.REQUIRED, choice.name, is_parallel=False)
