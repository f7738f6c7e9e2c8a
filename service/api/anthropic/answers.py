"""What the Messages API answers: its typed models, and how whole answers are written."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, RootModel
from pydantic_core import from_json

from engine.outputs import FinishReason
from service.api.answer_model import AnswerModel
from service.api.anthropic.dialogue import tool_use_id
from service.tools.turn_events import (
    CallArguments,
    CallBegin,
    CallEnd,
    ReasoningPiece,
    TextPiece,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from service.serving.generation import CompleteChoice, Generation
    from service.serving.generation import Usage as CountedTokens
    from service.tools.turn_events import TurnEvent
    from service.tools.turn_reader import TurnReader

StopReason: TypeAlias = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]
# Nothing is signed here; but clients that send thoughts back leave out those without a signature.
SIGNATURE = "unsigned"


class Usage(AnswerModel):
    """Tokens read and made."""

    input_tokens: int = Field(description="Of the prompt, without those in the next field.")
    cache_read_input_tokens: int = Field(description="Known from earlier prompts that began alike.")
    cache_creation_input_tokens: int = Field(description="0: caching costs nothing here.")
    output_tokens: int = Field(description="Every generated token, also one that ends.")


class AnswerText(AnswerModel):
    """A text."""

    type: Literal["text"]
    text: str


class AnswerThinking(AnswerModel):
    """The model's thoughts."""

    type: Literal["thinking"]
    thinking: str
    signature: str = Field(description="Signs nothing, and is not looked at if it comes back.")


class AnswerToolUse(AnswerModel):
    """A call of a tool, which the caller is asked to run."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


AnswerBlock: TypeAlias = AnswerText | AnswerThinking | AnswerToolUse


class AnsweredMessage(AnswerModel):
    """The assistant's turn; in a stream's `message_start` as it is before it begins."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None = Field(
        description="`model_context_window_exceeded`: the context was full before max_tokens."
    )
    stop_sequence: str | None = Field(description="The one of the request that ended the answer.")
    usage: Usage


class MessageStart(AnswerModel):
    """The first event."""

    type: Literal["message_start"]
    message: AnsweredMessage


class BlockStart(AnswerModel):
    """A block begins; what it holds is empty yet."""

    type: Literal["content_block_start"]
    index: int
    content_block: AnswerBlock


class TextDelta(AnswerModel):
    """More of a text."""

    type: Literal["text_delta"]
    text: str


class ThinkingDelta(AnswerModel):
    """More of the thoughts."""

    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(AnswerModel):
    """What stands in the place of a signature, before the thoughts' end."""

    type: Literal["signature_delta"]
    signature: str


class InputDelta(AnswerModel):
    """More of the JSON text of a call's arguments."""

    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(AnswerModel):
    """More of a block."""

    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(AnswerModel):
    """A block is at its end."""

    type: Literal["content_block_stop"]
    index: int


class Ending(AnswerModel):
    """Why the answer ends."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(AnswerModel):
    """Why the answer ends, and what it took."""

    type: Literal["message_delta"]
    delta: Ending
    usage: Usage


class MessageStop(AnswerModel):
    """The last event."""

    type: Literal["message_stop"]


class Ping(AnswerModel):
    """Nothing but a sign of life."""

    type: Literal["ping"]


class StreamedEvent(
    RootModel[
        MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping
    ]
):
    """One event of a stream; its name is its type."""


class CountedInput(AnswerModel):
    """How many tokens a prompt has."""

    input_tokens: int = Field(description="As an answer counts them, cached ones included.")


def usage_of(counted: CountedTokens) -> Usage:
    """Return the tokens of a request as Anthropic's API tells them."""
    return Usage(
        input_tokens=counted.prompt_tokens - counted.cached_tokens,
        cache_read_input_tokens=counted.cached_tokens,
        cache_creation_input_tokens=0,
        output_tokens=counted.completion_tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerShape:
    """What there is to know of an answer before it begins."""

    model: str
    request_id: str | None
    new_reader: Callable[[], TurnReader]
    is_capped: bool  # to fewer tokens than were asked for, by the model's context

    def ending(self, reason: FinishReason, stop_reason: str | int | None, num_calls: int) -> Ending:
        """Return why an answer ends. num_calls: complete ones."""
        if reason is FinishReason.LENGTH:
            word: StopReason = "model_context_window_exceeded" if self.is_capped else "max_tokens"
            return Ending(stop_reason=word, stop_sequence=None)
        if isinstance(stop_reason, str):
            return Ending(stop_reason="stop_sequence", stop_sequence=stop_reason)
        word = "tool_use" if num_calls else "end_turn"
        return Ending(stop_reason=word, stop_sequence=None)

    def message(self, message_id: str, usage: Usage) -> AnsweredMessage:
        """Return an answer that has not begun."""
        return AnsweredMessage(
            id=message_id,
            type="message",
            role="assistant",
            model=self.model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=usage,
        )


def new_message_id() -> str:
    """Return an answer's id."""
    return f"msg_{uuid.uuid4().hex}"


def whole_message(
    shape: AnswerShape, generation: Generation, choices: Sequence[CompleteChoice]
) -> AnsweredMessage:
    """Return an answer that is not streamed."""
    (choice,) = choices
    reader = shape.new_reader()
    is_cut = choice.finish_reason is FinishReason.LENGTH
    blocks = blocks_of([*reader.push(choice.text), *reader.flush(is_cut=is_cut)])
    num_calls = sum(block.type == "tool_use" for block in blocks)
    ending = shape.ending(choice.finish_reason, choice.stop_reason, num_calls)
    return shape.message(new_message_id(), usage_of(generation.usage)).model_copy(
        update={
            "content": blocks,
            "stop_reason": ending.stop_reason,
            "stop_sequence": ending.stop_sequence,
        }
    )


def blocks_of(events: Iterable[TurnEvent]) -> list[AnswerBlock]:
    """Put a turn's pieces together; a call that was cut off is left out."""
    blocks: list[AnswerBlock] = []
    calls: dict[int, tuple[CallBegin, list[str]]] = {}
    for event in events:
        last = blocks[-1] if blocks else None
        if isinstance(event, TextPiece):
            if isinstance(last, AnswerText):
                last.text += event.text
            elif event.text:
                blocks.append(AnswerText(type="text", text=event.text))
        elif isinstance(event, ReasoningPiece):
            if isinstance(last, AnswerThinking):
                last.thinking += event.text
            elif event.text:
                blocks.append(
                    AnswerThinking(type="thinking", thinking=event.text, signature=SIGNATURE)
                )
        elif isinstance(event, CallBegin):
            calls[event.index] = (event, [])
        elif isinstance(event, CallArguments):
            calls[event.index][1].append(event.text)
        elif isinstance(event, CallEnd):
            call, arguments = calls.pop(event.index)
            blocks.append(_tool_use(call, "".join(arguments)))
    return blocks


def _tool_use(call: CallBegin, arguments: str) -> AnswerBlock:
    """Return a call; as text where its arguments are so deep that no JSON here would hold them."""
    try:
        given = from_json(arguments or "{}")  # of at most 200 levels, as requests are
    except ValueError:
        return AnswerText(type="text", text=f"{call.name}({arguments})")
    return AnswerToolUse(type="tool_use", id=tool_use_id(call.id), name=call.name, input=given)
