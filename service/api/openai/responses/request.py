"""The body of POST /v1/responses, and what the engine is asked for it.

What a server would have to keep something for is refused with the reason; what OpenAI's own service
does beyond making text is taken and named as ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from engine.sampling_params import MAX_LOGPROBS
from service.api.dialogues import TemplateKwargs
from service.api.list_lengths import at_most
from service.api.openai.fields import SampledRequest
from service.api.openai.responses.items import Items, dialogue_of
from service.api.openai.responses.tools import (
    OfferedTools,
    ResponseToolChoice,
    check_tools,
    tool_use,
)
from service.api.requests import (
    EMPTY_IS_SILENCE,
    MAX_COUNT,
    MAX_FIELDS,
    MAX_NAME_LENGTH,
    NO_EFFECT,
    Flag,
    Ignored,
    MaxTokens,
    Name,
    RequestModel,
    Text,
    Unsupported,
    is_empty,
    is_neutral,
    none_if,
)
from service.api.text_forms import Schema, schema_form
from service.grammars.json_schema import ANY_OBJECT
from service.serving.turns import AskedTurn
from service.text.messages import with_system_text
from service.text.render_options import RenderOptions

if TYPE_CHECKING:
    from service.grammars.wanted import TextForm
    from service.serving.served_model import ServedModel
    from service.text.render_options import KwargValue

_LOGPROBS = "message.output_text.logprobs"
_EFFORT = "reasoning_effort"  # as templates know it
MAX_METADATA_VALUE = 512  # characters


def _refused(reason: str) -> BeforeValidator:
    """Refuse whatever says something, with the reason."""

    def refuse(value: object) -> None:
        if not is_neutral(value):
            raise PydanticCustomError("unsupported_field", "{reason}", {"reason": reason})

    return BeforeValidator(refuse)


def _kept_nothing(instead: str) -> BeforeValidator:
    return _refused(f"this server keeps nothing between requests; {instead}")


class TextFormat(RequestModel):
    """What kind of text an answer is."""

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="`text`: any. `json_object`: any JSON object. `json_schema`: JSON of `schema`."
    )
    name: Text = Field(None, description="For people; without effect on the answer.")
    description: Text = Field(None, description="For people; without effect on the answer.")
    schema_: Schema = Field(None, alias="schema", description="The JSON schema.")
    strict: bool | None = Field(
        None, description="Answers follow the schema in either case, strictly."
    )

    @model_validator(mode="after")
    def _has_schema(self) -> TextFormat:
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError('is of type "json_schema" and has no schema; give one')
        return self

    def own_ignored(self) -> list[str]:
        """Name what was given and has no effect: a schema where the type takes none."""
        is_unused = self.type != "json_schema" and not is_empty(self.schema_)
        return [*super().own_ignored(), *(["schema"] if is_unused else [])]

    @property
    def form(self) -> TextForm | None:
        """Return the form that the text must have; None for any."""
        if self.type == "text":
            return None
        schema = self.schema_ if self.type == "json_schema" else None
        return schema_form("text.format", ANY_OBJECT if schema is None else schema)


class TextOptions(RequestModel):
    """What the text of an answer is like."""

    format: Annotated[TextFormat | None, EMPTY_IS_SILENCE] = Field(
        None, description="The kind of text; any by default."
    )
    verbosity: Annotated[Ignored, none_if("medium")]


class Reasoning(RequestModel):
    """How much the model thinks, where its template lets that be said."""

    effort: Name = Field(
        None, description="Given to the template as reasoning_effort, if it takes it."
    )
    summary: Annotated[Ignored, none_if("auto")]
    generate_summary: Annotated[Ignored, none_if("auto")]


class ResponseStreamOptions(RequestModel):
    """How an answer is streamed."""

    include_obfuscation: Flag = Field(
        None, description="Events are as long as they are.", json_schema_extra=NO_EFFECT
    )


class ResponsesRequest(SampledRequest):
    """The body of POST /v1/responses."""

    other_names: ClassVar = {
        **SampledRequest.other_names,
        "max_tokens": ("max_output_tokens", *SampledRequest.other_names["max_tokens"]),
    }

    input: Items = Field(
        description="A text of the user's, or the dialogue so far as items, oldest first.",
        json_schema_extra={"minItems": 1, "minLength": 1},
    )
    instructions: Text = Field(None, description="What the system says, before the dialogue.")
    max_output_tokens: MaxTokens = Field(None, description="Another name of max_tokens.")
    chat_template_kwargs: TemplateKwargs = Field(
        None, description="Variables of the template's own; others are named as ignored."
    )
    reasoning: Annotated[Reasoning | None, EMPTY_IS_SILENCE] = Field(
        None, description="How much the model thinks."
    )
    text: Annotated[TextOptions | None, EMPTY_IS_SILENCE] = Field(
        None, description="What the answer's text is like."
    )

    # Tools
    tools: OfferedTools = Field(None, description="What the model may call.")
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | ResponseToolChoice | None, EMPTY_IS_SILENCE
    ] = Field(None, description="Whether tools may, must or must not be called; `auto`.")
    parallel_tool_calls: bool | None = Field(
        None, description="false: one call in an answer at most."
    )
    max_tool_calls: int | None = Field(
        None,
        ge=0,
        le=MAX_COUNT,
        description="Of tools that the server runs itself, and there are none.",
        json_schema_extra=NO_EFFECT,
    )

    # What is told
    include: Annotated[
        list[Annotated[str, Field(max_length=MAX_NAME_LENGTH)]] | None,
        at_most(MAX_FIELDS, "items"),
        EMPTY_IS_SILENCE,
    ] = Field(
        None,
        description=f"`{_LOGPROBS}` tells each token's logprob; others are named as ignored.",
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Tell so many likeliest tokens at each place."
    )
    stream_options: Annotated[ResponseStreamOptions | None, EMPTY_IS_SILENCE] = Field(
        None, description="Only with stream."
    )
    metadata: Annotated[
        dict[str, Annotated[str, Field(max_length=MAX_METADATA_VALUE)]] | None,
        at_most(MAX_FIELDS, "items"),
        EMPTY_IS_SILENCE,
    ] = Field(None, description="Comes back with the answer.")

    # Accepted, and named as ignored
    prompt_cache_key: Name = Field(
        None,
        description="Comes back with the answer; prefixes are found without it.",
        json_schema_extra=NO_EFFECT,
    )
    safety_identifier: Name = Field(
        None, description="Comes back with the answer.", json_schema_extra=NO_EFFECT
    )
    truncation: Annotated[Ignored, none_if("disabled")]

    # Refused
    previous_response_id: Annotated[
        Any, _kept_nothing("send the dialogue so far as items of input")
    ] = Field(None, description="Refused: nothing is kept.")
    conversation: Annotated[Any, _kept_nothing("send the dialogue so far as items of input")] = (
        Field(None, description="Refused: nothing is kept.")
    )
    background: Annotated[Any, _kept_nothing("wait for the answer, or stream it")] = Field(
        None, description="Refused where true: nothing is kept."
    )
    prompt: Annotated[Any, _kept_nothing("send the prompt's text as instructions and input")] = (
        Field(None, description="Refused: nothing is kept.")
    )
    n: Annotated[Unsupported, none_if(1)] = Field(
        None, description="An answer is one; ask several times."
    )

    @model_validator(mode="after")
    def _tools_agree(self) -> ResponsesRequest:
        check_tools(self.tools or (), self.tool_choice)
        return self

    def own_ignored(self) -> list[str]:
        """Name the fields that were given and have no effect."""
        included = [f"include.{name}" for name in self.include or () if name != _LOGPROBS]
        return [*super().own_ignored(), *included]

    def unread(self, model: ServedModel) -> list[str]:
        """Name what the variant's template does not read, and so has no effect."""
        template = model.require_chat_template()
        names = [
            f"chat_template_kwargs.{name}"
            for name, value in (self.chat_template_kwargs or {}).items()
            if value is not None and name not in template.kwargs_names
        ]
        if self._effort and _EFFORT not in template.kwargs_names:
            names.append("reasoning.effort")
        is_thought = any(item.type == "reasoning" and item.said for item in self.input)
        if is_thought and not template.reads("reasoning_content"):
            names.append("input[].reasoning")
        return names

    def asked_turn(self, model: ServedModel) -> AskedTurn:
        """Return the turn that is asked for. Raises InvalidFieldError."""
        template = model.require_chat_template()
        effort: dict[str, KwargValue] = {_EFFORT: self._effort} if self._effort else {}
        given = {**effort, **(self.chat_template_kwargs or {})}
        kwargs = {
            name: value
            for name, value in given.items()
            if value is not None and name in template.kwargs_names
        }
        messages = dialogue_of(self.input, self.instructions)
        if messages[0]["role"] == "system" and not template.traits.takes_system:
            messages = with_system_text(messages[1:], messages[0]["content"], takes_system=False)
        return AskedTurn(
            messages=messages,
            tools=tool_use(
                self.tools or (),
                self.tool_choice,
                is_parallel=self.parallel_tool_calls,
            ),
            options=RenderOptions(template_kwargs=kwargs),
            text_form=self.text_form,
            param="input",
            schema_params=[
                f"tools.{place}.{one.schema_field}"
                for place, one in enumerate(self.tools or ())
                if one.is_used
            ],
        )

    @property
    def num_logprobs(self) -> int | None:
        """Return how many likeliest tokens are told; None where no logprob is."""
        is_told = self.top_logprobs or _LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if is_told else None

    @property
    def custom_tools(self) -> frozenset[str]:
        """Return the names of the tools that take a text as it is."""
        return frozenset(one.name for one in self.tools or () if one.type == "custom" and one.name)

    @property
    def _effort(self) -> str | None:
        return self.reasoning.effort if self.reasoning is not None else None

    @property
    def _forms(self) -> list[TextForm]:
        asked = self.text.format if self.text is not None else None
        form = asked.form if asked is not None else None
        return [*super()._forms, *(() if form is None else (form,))]
