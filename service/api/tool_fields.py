"""Tools in OpenAI's words: what a chat request offers, and how the answer may use it.

`tools` and `tool_choice`, and the older `functions` and `function_call`, which mean the same but
allow one call and are answered in words of their own.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from service.api.list_lengths import at_most
from service.api.requests import EMPTY_IS_SILENCE, RequestModel, Text, is_empty
from service.grammars.limits import MAX_SOURCE_BYTES
from service.tools.calls import NO_TOOLS, Tool, ToolMode, ToolUse

MAX_TOOLS = 128
MAX_TOOL_CHARACTERS = 2 * MAX_SOURCE_BYTES  # of descriptions and schemas together
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CHOICES = ("none", "auto", "required")


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("give 1 to 64 letters, digits, _ and -")
    return name


def _read_parameters(value: object) -> dict[str, Any] | None:
    if is_empty(value):
        return None
    if not isinstance(value, dict):
        raise ValueError("give a JSON schema: an object")
    return value


def _check_kind(kind: object) -> object:
    if isinstance(kind, str) and kind != "function":
        raise PydanticCustomError(
            "unsupported_field", 'this server takes tools of type "function" alone'
        )
    return kind


_FEW_TOOLS = at_most(MAX_TOOLS, "tools")
ToolName = Annotated[str, AfterValidator(_check_name)]
Parameters = Annotated[
    dict[str, Any] | None,
    PlainValidator(_read_parameters, json_schema_input_type=dict[str, Any] | None),
]
FunctionKind = Annotated[Literal["function"], BeforeValidator(_check_kind)]


class Function(RequestModel):
    """A function that the model may ask the client to run."""

    name: ToolName = Field(description="1 to 64 letters, digits, _ and -.")
    description: Text = Field(None, description="What it does, for the model.")
    parameters: Parameters = Field(
        None, description="A JSON schema of its arguments; silence and {} take any object."
    )
    strict: bool | None = Field(
        None,
        description="true: a schema that cannot be followed is refused, also where a call need not"
        " come. Arguments follow the schema in either case.",
    )

    @property
    def tool(self) -> Tool:
        """Return it in neutral words."""
        return Tool(self.name, self.description or "", self.parameters, bool(self.strict))


class FunctionTool(RequestModel):
    """A tool; functions are the only kind."""

    type: FunctionKind = Field("function", description="Others are not taken.")
    function: Function = Field(description="The function.")


class NamedFunction(RequestModel):
    """The name of one function."""

    name: ToolName = Field(description="Of one of the tools.")


class NamedTool(RequestModel):
    """One tool by its name."""

    type: FunctionKind = Field("function", description="Others are not taken.")
    function: NamedFunction = Field(description="Its name.")


class AllowedTools(RequestModel):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"] = Field(description="As the words of tool_choice.")
    tools: Annotated[list[NamedTool], Field(fail_fast=True, min_length=1), _FEW_TOOLS] = Field(
        description="Those that the answer may call."
    )


class ToolChoice(RequestModel):
    """Which tools the answer must or may call."""

    type: Literal["function", "allowed_tools"] = Field(
        "function", description="`function`: exactly this one. `allowed_tools`: some of the tools."
    )
    function: Annotated[NamedFunction | None, EMPTY_IS_SILENCE] = Field(
        None, description="With type `function`."
    )
    allowed_tools: Annotated[AllowedTools | None, EMPTY_IS_SILENCE] = Field(
        None, description="With type `allowed_tools`."
    )

    @model_validator(mode="after")
    def _says_which(self) -> ToolChoice:
        if getattr(self, self.type) is None:
            raise ValueError(f'is of type "{self.type}" without {self.type}; give it')
        return self


def _check_choice(choice: object) -> object:
    if isinstance(choice, str) and choice not in _CHOICES:
        raise ValueError(f"give {', '.join(_CHOICES)}, or an object that names a function")
    return choice


Functions = Annotated[
    list[Function] | None,
    Field(fail_fast=True),
    _FEW_TOOLS,
    EMPTY_IS_SILENCE,
]
Tools = Annotated[
    list[FunctionTool] | None,
    Field(fail_fast=True),
    _FEW_TOOLS,
    EMPTY_IS_SILENCE,
]
Choice = Annotated[
    Literal["none", "auto", "required"] | ToolChoice | None,
    BeforeValidator(_check_choice),
    EMPTY_IS_SILENCE,
]
FunctionChoice = Annotated[
    Literal["none", "auto"] | NamedFunction | None,
    BeforeValidator(_check_choice),
    EMPTY_IS_SILENCE,
]


class ToolRequest(RequestModel):
    """A request that may offer tools."""

    tools: Tools = Field(None, description="What the model may ask the client to run.")
    tool_choice: Choice = Field(
        None,
        description="`none`: no call, and the model is told of no tool. `auto`: as the model likes."
        " `required`: one at least. Or an object that names what must, or may, be called.",
    )
    parallel_tool_calls: bool | None = Field(
        None,
        description="false: one call in an answer at most. true by default where the variant's"
        " template takes tools, false where they are told of in words.",
    )
    functions: Functions = Field(None, description="The older spelling of tools.")
    function_call: FunctionChoice = Field(None, description="The older spelling of tool_choice.")

    @model_validator(mode="after")
    def _tools_agree(self) -> ToolRequest:
        if self.tools and self.functions:
            raise ValueError("tools and functions mean the same; give one of them")
        offered = self._offered
        names = [function.name for function in offered]
        if len(set(names)) < len(names):
            raise ValueError(f"{self._field} has two of one name; give each its own")
        size = sum(len(one.description or "") + len(str(one.parameters)) for one in offered)
        if size > MAX_TOOL_CHARACTERS:
            raise ValueError(
                f"{self._field} has {size} characters; give at most {MAX_TOOL_CHARACTERS}"
            )
        self._check_choice(names)
        return self

    @property
    def is_legacy(self) -> bool:
        """Whether calls are asked for, and answered, in the older words."""
        return bool(self.functions)

    @property
    def unused(self) -> list[str]:
        """Name what was given and has no effect."""
        allows_more = self.parallel_tool_calls and (self.is_legacy or not self.tools)
        return ["parallel_tool_calls"] if allows_more else []

    @property
    def schema_param(self) -> str:
        """Return the field of a tool's schema; {} is the tool's place."""
        return "functions.{}.parameters" if self.is_legacy else "tools.{}.function.parameters"

    @property
    def tool_use(self) -> ToolUse:
        """Return what is offered, and how it may be used."""
        tools = [function.tool for function in self._offered]
        choice = self.function_call if self.is_legacy else self.tool_choice
        if not tools or choice == "none":
            return NO_TOOLS
        mode, only, allowed = ToolMode.AUTO, None, None
        if isinstance(choice, str):
            mode = ToolMode(choice)
        elif isinstance(choice, NamedFunction):
            mode, only = ToolMode.REQUIRED, choice.name
        elif choice is not None and choice.function is not None:
            mode, only = ToolMode.REQUIRED, choice.function.name
        elif choice is not None and choice.allowed_tools is not None:
            mode = ToolMode(choice.allowed_tools.mode)
            allowed = {one.function.name for one in choice.allowed_tools.tools}
        # Named functions are called once, as by OpenAI's own models.
        is_parallel = False if self.is_legacy or only is not None else self.parallel_tool_calls
        return ToolUse(tools, mode, only, is_parallel=is_parallel, allowed=allowed)

    @property
    def _field(self) -> str:
        return "functions" if self.is_legacy else "tools"

    @property
    def _offered(self) -> list[Function]:
        return self.functions or [tool.function for tool in self.tools or ()]

    def _check_choice(self, names: list[str]) -> None:
        """Raise ValueError where what must be called is not there."""
        for field, choice in (
            ("tool_choice", self.tool_choice),
            ("function_call", self.function_call),
        ):
            if choice in (None, "none", "auto"):
                continue
            fits = self.is_legacy is (field == "function_call")
            if not names or not fits:
                raise ValueError(f"{field} asks for a call, but there are no tools; give some")
            unknown = [name for name in _named_by(choice) if name not in names]
            if unknown:
                raise ValueError(f"{field} names a function that is not among {self._field}")


def _named_by(choice: object) -> list[str]:
    if isinstance(choice, NamedFunction):
        return [choice.name]
    if isinstance(choice, ToolChoice) and choice.type == "function" and choice.function:
        return [choice.function.name]
    if isinstance(choice, ToolChoice) and choice.allowed_tools:
        return [one.function.name for one in choice.allowed_tools.tools]
    return []
