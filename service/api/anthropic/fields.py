"""What requests of the Messages API hold: the dialogue in blocks, tools, and how to answer.

null, empty and neutral values mean the same as silence. What an object's fields mean depends on its
`type`; a field that says nothing for the type is named as ignored, like one that nobody knows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from service.api.list_lengths import FEW_MESSAGES, at_most, require_few
from service.api.requests import (
    EMPTY_IS_SILENCE,
    Flag,
    Ignored,
    MaxTokens,
    Name,
    RequestModel,
    Stop,
    Temperature,
    Text,
    TopK,
    TopP,
    is_empty,
    limits_of,
    none_if,
)
from service.api.text_forms import Schema, schema_form
from service.api.tool_fields import MAX_TOOL_CHARACTERS

if TYPE_CHECKING:
    from collections.abc import Collection

    from service.grammars.wanted import TextForm

MAX_TOOLS = 1024
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")

# What the fields of a block are, by its type; `cache_control` may stand in any.
_BLOCK_FIELDS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "thinking": ("thinking", "signature"),
    "redacted_thinking": ("data",),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id", "content", "is_error"),
}
# Without these a block of the type says nothing; they may be empty.
_NEEDED = {
    "text": ("text",),
    "thinking": ("thinking",),
    "tool_use": ("id", "name"),
    "tool_result": ("tool_use_id",),
}
_BLOCKS_OF = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
_NOT_READ = ("image", "document")  # this server's variants read text alone

CacheControl = Annotated[
    Any, Field(None, description="Taken; prompts that begin alike are cached in any case.")
]


def _read_blocks(content: object, info: ValidationInfo, kinds: Collection[str]) -> object:
    """Take a text for a list of one block; refuse kinds of blocks that are not taken."""
    if content is None:
        return None
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        raise ValueError("give a string, or a list of blocks")
    require_few(content, limits_of(info).max_messages, "blocks")
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            known = kind in _BLOCK_FIELDS or kind in _NOT_READ
            found = f"of type {kind}" if known else "of another type"
            raise PydanticCustomError(
                "unsupported_field", f"has a block {found}; taken here: {', '.join(kinds)}"
            )
    return content


def _read_texts(content: object, info: ValidationInfo) -> object:
    return _read_blocks(content, info, ("text",)) or None


def _read_content(content: object, info: ValidationInfo) -> object:
    return _read_blocks(content, info, _BLOCK_FIELDS)


class TextBlock(RequestModel):
    """A text among several."""

    type: Literal["text"] = Field(description="Blocks of other kinds are not taken.")
    text: str = Field(description="What it says.")
    cache_control: CacheControl


# A text is read as one block, so that errors speak of what was sent alone.
Texts = Annotated[
    Annotated[list[TextBlock], Field(fail_fast=True)] | None,
    BeforeValidator(_read_texts, json_schema_input_type=str | list[TextBlock] | None),
    EMPTY_IS_SILENCE,
]


class Block(RequestModel):
    """A part of a turn."""

    type: Literal["text", "thinking", "redacted_thinking", "tool_use", "tool_result"] = Field(
        description="`image`, `document` and what servers' own tools make are refused."
    )
    text: str | None = Field(None, description="Of `text`.")
    thinking: str | None = Field(
        None,
        description="Of `thinking`: an assistant's thoughts, where the variant's template writes"
        " them; else named as ignored.",
    )
    signature: Text = Field(None, description="Of `thinking`; not looked at.")
    data: Text = Field(None, description="Of `redacted_thinking`, which is named as ignored.")
    id: Name = Field(None, description="Of `tool_use`; its result names it.")
    name: Name = Field(None, description="Of `tool_use`: which tool was called.")
    input: Annotated[dict[str, Any] | None, EMPTY_IS_SILENCE] = Field(
        None, description="Of `tool_use`: the arguments."
    )
    tool_use_id: Name = Field(None, description="Of `tool_result`: which call it answers.")
    content: Texts = Field(
        None, description="Of `tool_result`: what the tool said; texts are joined by line breaks."
    )
    is_error: Flag = Field(
        None, description="Of `tool_result`: that the tool failed, which the model is told."
    )
    cache_control: CacheControl

    @model_validator(mode="after")
    def _says_something(self) -> Block:
        missing = [name for name in _NEEDED.get(self.type, ()) if getattr(self, name) is None]
        if missing:
            raise ValueError(f"is of type {self.type} and has no {' and no '.join(missing)}")
        return self

    def own_ignored(self) -> list[str]:
        """Name what has no effect: also fields that belong to blocks of another type."""
        if self.type == "redacted_thinking":
            return [self.type]
        others = {name for names in _BLOCK_FIELDS.values() for name in names}
        others -= set(_BLOCK_FIELDS[self.type])
        foreign = [name for name in sorted(others) if not is_empty(getattr(self, name))]
        return [*super().own_ignored(), *foreign]


class Turn(RequestModel):
    """One turn of a dialogue."""

    role: Literal["user", "assistant", "system"] = Field(
        description="Whose turn it is. A `system` turn becomes part of the system text, wherever it"
        " stands; turns of one role that follow each other are one turn."
    )
    content: Annotated[
        Annotated[list[Block], Field(fail_fast=True)] | None,
        BeforeValidator(_read_content, json_schema_input_type=str | list[Block] | None),
    ] = Field(None, description="Text, or blocks; texts are joined by line breaks.")

    @model_validator(mode="after")
    def _has_blocks_of_its_role(self) -> Turn:
        if self.content is None and self.role != "assistant":
            raise ValueError("has no content; give a string, or a list of blocks")
        for number, block in enumerate(self.blocks):
            if block.type not in _BLOCKS_OF[self.role]:
                raise ValueError(
                    f"content.{number} is of type {block.type}, which no turn of role {self.role}"
                    f" has; it may have {', '.join(_BLOCKS_OF[self.role])}"
                )
        return self

    @property
    def blocks(self) -> list[Block]:
        """Return the content."""
        return self.content or []


def _check_tool_name(name: str | None) -> str | None:
    if name is not None and not _TOOL_NAME.fullmatch(name):
        raise ValueError("give 1 to 128 letters, digits, _ and -")
    return name


ToolName = Annotated[Name, AfterValidator(_check_tool_name)]


class ToolDefinition(RequestModel):
    """A tool that the model may ask the caller to run."""

    type: Name = Field(
        None,
        description="`custom`, or nothing. Tools that Anthropic's own models or servers know"
        " (`web_search_…`, `bash_…`) are left out, and named as ignored.",
    )
    name: ToolName = Field(None, description="What the model calls it by.")
    description: Text = Field(None, description="What it does, for the model.")
    input_schema: Annotated[dict[str, Any] | None, EMPTY_IS_SILENCE] = Field(
        None, description="A JSON schema of its arguments; any object by default."
    )
    strict: bool | None = Field(None, description="true: arguments follow the schema strictly.")
    cache_control: CacheControl

    @model_validator(mode="after")
    def _has_name(self) -> ToolDefinition:
        if self.is_callers and self.name is None:
            raise ValueError("has no name; give one")
        return self

    @property
    def is_callers(self) -> bool:
        """Whether the caller runs it and says what it takes."""
        return self.type in (None, "custom")

    def own_ignored(self) -> list[str]:
        """Name what has no effect: of a tool that is left out its type alone."""
        return super().own_ignored() if self.is_callers or not self.type else [self.type]


class ToolChoice(RequestModel):
    """Whether tools may, must or must not be called."""

    type: Literal["auto", "any", "tool", "none"] = Field(
        description="`any`: at least one call; `tool`: one of the tool `name`."
    )
    name: ToolName = Field(None, description="With type `tool`: which.")
    disable_parallel_tool_use: bool | None = Field(
        None, description="true: one call at most; false: several. As the model does by default."
    )

    @model_validator(mode="after")
    def _names_its_tool(self) -> ToolChoice:
        if self.type == "tool" and self.name is None:
            raise ValueError("is of type tool and has no name; give one")
        if self.type != "tool" and self.name is not None:
            raise ValueError(f"is of type {self.type} and has a name; leave it out")
        return self


class Thinking(RequestModel):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"] = Field(
        description="Turns thinking on (`enabled`, `adaptive`) or off where the variant's template"
        " has a switch for it; else named as ignored."
    )
    budget_tokens: Annotated[Ignored, none_if(0)]
    display: Annotated[Ignored, none_if("summarized")]


class OutputFormat(RequestModel):
    """The form of the answer's text."""

    type: Literal["json_schema"] = Field(description="JSON of the schema.")
    schema_: Schema = Field(None, alias="schema", description="The JSON schema.")

    @model_validator(mode="after")
    def _has_schema(self) -> OutputFormat:
        if self.schema_ is None:
            raise ValueError("has no schema; give one")
        return self


class OutputConfig(RequestModel):
    """How the answer is made."""

    effort: Name = Field(
        None,
        description="Given to the template as reasoning_effort, if it takes it; else named as"
        " ignored.",
    )
    format: Annotated[OutputFormat | None, EMPTY_IS_SILENCE] = Field(
        None, description="The form of the answer's text; any by default."
    )


class Metadata(RequestModel):
    """On whose behalf it is."""

    user_id: Name = Field(None, description="Users share the engine fairly.")


class PromptRequest(RequestModel):
    """The body of POST /v1/messages/count_tokens: all of a request that its prompt is made of."""

    model: Name = Field(
        None,
        description="A served name. Where one variant is served, silence (and `dummy`) mean it.",
    )
    messages: Annotated[list[Turn], Field(fail_fast=True), FEW_MESSAGES] = Field(
        description="The dialogue so far, oldest turn first. If the last is the assistant's, the"
        " answer goes on from it.",
        json_schema_extra={"minItems": 1},
    )
    system: Texts = Field(
        None,
        description="The system text, or blocks of it, with empty lines between. A line"
        " `x-anthropic-billing-header: …` at the beginning of a block, here or in a system turn, is"
        " left out, and named as ignored.",
    )
    tools: Annotated[list[ToolDefinition] | None, at_most(MAX_TOOLS, "tools"), EMPTY_IS_SILENCE] = (
        Field(None, description="What the model may call.")
    )
    tool_choice: Annotated[ToolChoice | None, EMPTY_IS_SILENCE] = Field(
        None, description="Whether it must; `auto` by default."
    )
    thinking: Annotated[Thinking | None, EMPTY_IS_SILENCE] = Field(
        None, description="Whether the model thinks first; as its template has it by default."
    )
    output_config: Annotated[OutputConfig | None, EMPTY_IS_SILENCE] = Field(
        None, description="How the answer is made."
    )
    output_format: Annotated[OutputFormat | None, EMPTY_IS_SILENCE] = Field(
        None, description="Another name of output_config.format."
    )
    cache_control: CacheControl

    # Accepted, and named as ignored
    context_management: Ignored
    service_tier: Annotated[Ignored, none_if("auto")]
    betas: Ignored
    container: Ignored
    mcp_servers: Ignored
    inference_geo: Ignored
    speed: Annotated[Ignored, none_if("standard")]

    @model_validator(mode="after")
    def _fields_agree(self) -> PromptRequest:
        if self.output_format and self.output_config and self.output_config.format:
            raise ValueError(
                "output_format and output_config.format each ask for a form of the text; give one"
                " of them"
            )
        names = [tool.name for tool in self.own_tools]
        if len(set(names)) < len(names):
            raise ValueError("tools has two of the same name; give each its own")
        size = sum(
            len(one.description or "") + len(str(one.input_schema)) for one in self.own_tools
        )
        if size > MAX_TOOL_CHARACTERS:
            raise ValueError(f"tools has {size} characters; give at most {MAX_TOOL_CHARACTERS}")
        choice = self.tool_choice
        if choice is not None and choice.type == "any" and not names:
            raise ValueError("tool_choice asks for a call, and tools has none to be called")
        if choice is not None and choice.type == "tool" and choice.name not in names:
            raise ValueError("tool_choice.name is none of the tools that can be called")
        return self

    @property
    def own_tools(self) -> list[ToolDefinition]:
        """Return the tools that the caller runs."""
        return [tool for tool in self.tools or () if tool.is_callers]

    @property
    def text_form(self) -> TextForm | None:
        """Return the form that the answer's text must have; None for any text."""
        if self.output_format is not None and self.output_format.schema_ is not None:
            return schema_form("output_format.schema", self.output_format.schema_)
        asked = None if self.output_config is None else self.output_config.format
        if asked is None or asked.schema_ is None:
            return None
        return schema_form("output_config.format.schema", asked.schema_)


class MessagesRequest(PromptRequest):
    """The body of POST /v1/messages."""

    max_tokens: MaxTokens = Field(
        None,
        description="Most tokens of the answer; what is left of the context where that is less, or"
        " where it is silent. 0 reads the prompt alone.",
    )
    stop_sequences: Stop = Field(
        None, description="Texts that end the answer; they are not part of it."
    )
    stream: bool | None = Field(
        None, description="Send the answer as it comes, as server-sent events."
    )
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    metadata: Annotated[Metadata | None, EMPTY_IS_SILENCE] = Field(
        None, description="On whose behalf it is."
    )

    @property
    def user(self) -> str:
        """Return on whose behalf the request is; empty where it does not say."""
        return (self.metadata and self.metadata.user_id) or ""
