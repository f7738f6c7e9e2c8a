"""What POST /v1/responses answers: its typed models, whole and as the events of a stream.

They describe what `service.api.openai.responses.output` and `frames` put together; tests hold these
against them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from service.api.answer_model import AnswerModel
from service.api.openai.chat_answers import ChatToken

ItemStatus = Literal["in_progress", "completed", "incomplete"]


# ── items ───────────────────────────────────────────────────────────────────────────────────────


class OutputText(AnswerModel):
    """A text that people read."""

    type: Literal["output_text"]
    text: str
    annotations: list[None] = Field(description="Always empty.")
    logprobs: list[ChatToken] = Field(description="Empty unless they were asked for.")


class OutputMessage(AnswerModel):
    """What the assistant says."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class ReasoningText(AnswerModel):
    """What the model thought."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(AnswerModel):
    """The model's thoughts."""

    id: str
    type: Literal["reasoning"]
    summary: list[None] = Field(description="Always empty: thoughts come as they are.")
    content: list[ReasoningText]
    encrypted_content: None = Field(description="Nothing is hidden.")
    status: ItemStatus


class FunctionCallItem(AnswerModel):
    """A call of a function, for the client to run."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str = Field(description="A JSON object.")
    status: ItemStatus


class CustomToolCallItem(AnswerModel):
    """A call of a custom tool, for the client to run."""

    id: str
    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str
    status: ItemStatus


OutputItem = Annotated[
    OutputMessage | ReasoningItem | FunctionCallItem | CustomToolCallItem,
    Field(discriminator="type"),
]


# ── the answer ──────────────────────────────────────────────────────────────────────────────────


class InputTokensDetails(AnswerModel):
    """Where a prompt's tokens came from."""

    cached_tokens: int = Field(description="Known from earlier prompts that began alike.")
    cache_write_tokens: int = Field(description="0: what is kept of a prompt costs nothing.")


class OutputTokensDetails(AnswerModel):
    """What an answer's tokens were for."""

    reasoning_tokens: int = Field(description="Between the marks of the model's thoughts.")


class ResponseUsage(AnswerModel):
    """Tokens read and made."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int = Field(description="Every generated token, also one that ends.")
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(AnswerModel):
    """Why an answer that had begun failed."""

    code: str
    message: str


class IncompleteDetails(AnswerModel):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseObject(AnswerModel):
    """An answer, and the request's own fields."""

    id: str
    object: Literal["response"]
    created_at: int = Field(description="Seconds since 1970.")
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    output: list[OutputItem]
    usage: ResponseUsage | None = Field(description="null until the answer has ended.")
    model: str
    system_fingerprint: str
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: Literal["default"]
    background: Literal[False]
    store: Literal[False] = Field(description="Nothing is kept.")
    temperature: float | None = Field(description="That tokens were picked with.")
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]] = Field(description="Those that had an effect.")
    top_logprobs: int
    top_p: float | None = Field(description="That tokens were picked with.")
    truncation: Literal["disabled"]
    user: str | None


# ── events ──────────────────────────────────────────────────────────────────────────────────────


class _Event(AnswerModel):
    sequence_number: int = Field(description="From 0.")


class ResponseChanged(_Event):
    """How the answer stands: at its beginning and at its end."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseObject


class ItemChanged(_Event):
    """An item begins, or is complete."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _OfItem(_Event):
    item_id: str
    output_index: int


class PartChanged(_OfItem):
    """A part of an item begins, or is complete."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: int
    part: OutputText | ReasoningText


class TextDeltaEvent(_OfItem):
    """More of a text."""

    type: Literal["response.output_text.delta"]
    content_index: int
    delta: str
    logprobs: list[ChatToken]


class TextDoneEvent(_OfItem):
    """A text that is complete."""

    type: Literal["response.output_text.done"]
    content_index: int
    text: str
    logprobs: list[ChatToken]


class ReasoningDeltaEvent(_OfItem):
    """More of the thoughts."""

    type: Literal["response.reasoning_text.delta"]
    content_index: int
    delta: str


class ReasoningDoneEvent(_OfItem):
    """Thoughts that are complete."""

    type: Literal["response.reasoning_text.done"]
    content_index: int
    text: str


class CallDeltaEvent(_OfItem):
    """More of a call's arguments, or of a custom tool's text."""

    type: Literal["response.function_call_arguments.delta", "response.custom_tool_call_input.delta"]
    delta: str


class ArgumentsDoneEvent(_OfItem):
    """A call's arguments, complete."""

    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class InputDoneEvent(_OfItem):
    """A custom tool's text, complete."""

    type: Literal["response.custom_tool_call_input.done"]
    input: str


class ErrorEvent(_Event):
    """Why the stream ends before the answer does."""

    type: Literal["error"]
    code: str
    message: str
    param: str | None


class ResponseStreamEvent(
    RootModel[
        Annotated[
            ResponseChanged
            | ItemChanged
            | PartChanged
            | TextDeltaEvent
            | TextDoneEvent
            | ReasoningDeltaEvent
            | ReasoningDoneEvent
            | CallDeltaEvent
            | ArgumentsDoneEvent
            | InputDoneEvent
            | ErrorEvent,
            Field(discriminator="type"),
        ]
    ]
):
    """One event of a streamed answer."""
