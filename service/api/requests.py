"""What clients may send: the fields of both endpoints, their types and bounds.

A field that is not listed here is refused by name, whatever its value: one that would have no
effect is not swallowed. Types are strict (5.0 is no integer, "5" no number). What depends on the
served model is checked in `service.api.choices`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    ValidationInfo,
    model_validator,
)

from engine.sampling_params import MAX_SEED

# Far above any context; it keeps numbers that no machine integer holds out of the arithmetic.
MAX_COUNT = 2**31 - 1
MAX_NAME_LENGTH = 512
MAX_FIELDS = 64  # of one object; no model here has half as many


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How much one request may ask; from the settings."""

    max_choices: int
    max_prompts: int
    max_messages: int
    max_stop_strings: int
    max_stop_bytes: int


def _limits(info: ValidationInfo) -> RequestLimits:
    if not isinstance(info.context, RequestLimits):
        raise TypeError("request models are validated with RequestLimits as their context")
    return info.context


def _check_choices(n: object, info: ValidationInfo) -> object:
    limit = _limits(info).max_choices
    if type(n) is int and n > limit:
        raise ValueError(f"give at most {limit}")
    return n


def _check_messages(messages: object, info: ValidationInfo) -> object:
    limit = _limits(info).max_messages
    if messages == []:
        raise ValueError("is empty; give at least one message")
    if isinstance(messages, list) and len(messages) > limit:
        raise ValueError(f"has {len(messages)} messages; give at most {limit}")
    return messages


def _read_stop(stop: object, info: ValidationInfo) -> list[str]:
    strings = [stop] if isinstance(stop, str) else stop
    if strings is None:
        return []
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise ValueError("give a string or a list of strings")
    limits = _limits(info)
    if len(strings) > limits.max_stop_strings:
        raise ValueError(f"has {len(strings)} strings; give at most {limits.max_stop_strings}")
    for string in strings:
        if not 1 <= len(string.encode()) <= limits.max_stop_bytes:
            raise ValueError(f"give strings of 1 to {limits.max_stop_bytes} bytes")
    return strings


def _read_prompts(prompt: object, info: ValidationInfo) -> list[str | list[int]]:
    """Bring the four forms of `prompt` into one: a list of texts and lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise ValueError(_PROMPT_FORMS)
    if not prompt:
        raise ValueError("is empty; give at least one prompt")
    if _is_token_ids(prompt):
        return [prompt]
    limit = _limits(info).max_prompts
    if len(prompt) > limit:
        raise ValueError(f"has {len(prompt)} prompts; give at most {limit}")
    if all(isinstance(item, str) for item in prompt):
        return list(prompt)
    if all(isinstance(item, list) and _is_token_ids(item) for item in prompt):
        if not all(prompt):
            raise ValueError("holds an empty list of token ids; give at least one token id in each")
        return list(prompt)
    raise ValueError(_PROMPT_FORMS)


_PROMPT_FORMS = (
    "give a string, a list of strings, a list of token ids (integers of at least 0), "
    "or a list of such lists"
)


def _is_token_ids(items: list[object]) -> bool:
    # Not isinstance: True is an int there.
    return all(type(item) is int and 0 <= item <= MAX_COUNT for item in items)


def _read_content(content: object) -> str:
    """Join the text parts of a message; a plain string is the usual case."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(_is_text_part(part) for part in content):
        raise ValueError(
            'give a string, or a list of {"type": "text", "text": …}; other parts are not taken'
        )
    return "\n".join(part["text"] for part in content)


def _is_text_part(part: object) -> bool:
    return (
        isinstance(part, dict)
        and part.keys() == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
    )


_PromptForms = str | list[str] | list[int] | list[list[int]]
_StopForms = str | list[str] | None
_ContentForms = str | list[dict[str, str]]


class StrictModel(BaseModel):
    """Refuses other types than those written down, and names it does not know."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_num_fields(cls, fields: object) -> object:
        # Else pydantic would describe each of a million unknown names.
        if isinstance(fields, dict) and len(fields) > MAX_FIELDS:
            raise ValueError(f"has {len(fields)} fields; give at most {MAX_FIELDS}")
        return fields


class StreamOptions(StrictModel):
    """What a stream carries beside the text."""

    include_usage: bool = Field(False, description="End with a chunk that counts the tokens.")


class GenerationRequest(StrictModel):
    """The fields that both endpoints share. null means: not given."""

    model: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, description="A served name.")
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Most tokens to generate for each choice."
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Another name of max_tokens; give one of them."
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 picks the most likely token. The variant's own by default."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Share of probability to pick from. The variant's by default."
    )
    top_k: int | None = Field(
        None,
        ge=-1,
        le=MAX_COUNT,
        description="How many tokens to pick from; 0 and -1 are all. The variant's own by default.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Makes sampling repeatable; choice i of a prompt takes seed + i.",
    )
    stop: Annotated[list[str], PlainValidator(_read_stop, json_schema_input_type=_StopForms)] = (
        Field([], description="Texts that end an answer; they are not part of it.")
    )
    stream: bool | None = Field(
        None, description="Send the answer as it comes, as server-sent events."
    )
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    n: Annotated[int | None, BeforeValidator(_check_choices)] = Field(
        None, ge=1, description="How many choices to make of each prompt."
    )
    user: str | None = Field(
        None,
        max_length=MAX_NAME_LENGTH,
        description="On whose behalf it is; users share the engine fairly.",
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> GenerationRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens mean the same; give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options has an effect only with stream set to true")
        return self

    @property
    def asked_max_tokens(self) -> int | None:
        """Return the bound on generated tokens under either of its names."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    @property
    def num_choices(self) -> int:
        """Return how many choices to make of each prompt."""
        return 1 if self.n is None else self.n

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[
        Sequence[str | list[int]],
        PlainValidator(_read_prompts, json_schema_input_type=_PromptForms),
    ] = Field(description="One prompt or several, as text or as token ids.")
    echo: bool | None = Field(None, description="Begin each answer with its prompt.")


class Message(StrictModel):
    """One turn of a dialogue."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, PlainValidator(_read_content, json_schema_input_type=_ContentForms)]


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], FailFast(), BeforeValidator(_check_messages)] = Field(
        description="The dialogue so far, oldest first.", json_schema_extra={"minItems": 1}
    )
