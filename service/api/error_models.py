"""The bodies of errors, as models: one for each server in whose words errors are told.

They describe; bodies are put together in `service.api.error_responses`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, Field

from service.api.answer_model import AnswerModel
from service.api.endpoint import ErrorShape

OpenAIErrorType: TypeAlias = Literal[
    "invalid_request_error", "rate_limit_error", "server_error", "service_unavailable"
]


class OpenAIErrorDetail(AnswerModel):
    """What went wrong."""

    message: str = Field(description="What was found, what is expected, and what to do.")
    type: OpenAIErrorType = Field(description="The kind of error, coarsely.")
    param: str | None = Field(description="The field it is about, if it is about one.")
    code: str | None = Field(description="The kind of error, finely; for programs.")


class OpenAIError(AnswerModel):
    """An error in the words of OpenAI's API."""

    error: OpenAIErrorDetail


class TgiError(AnswerModel):
    """An error in the words of text-generation-inference."""

    error: str = Field(description="What was found, what is expected, and what to do.")
    error_type: str = Field(description="The kind of error, such as `validation`.")


AnthropicErrorType: TypeAlias = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "timeout_error",
    "request_too_large",
    "rate_limit_error",
    "api_error",
    "overloaded_error",
]


class AnthropicErrorDetail(AnswerModel):
    """What went wrong."""

    type: AnthropicErrorType = Field(description="The kind of error.")
    message: str = Field(description="What was found, what is expected, and what to do.")


class AnthropicError(AnswerModel):
    """An error in the words of Anthropic's API; as `event: error` in a stream."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str | None = Field(description="The request's x-request-id.")


ERROR_MODELS: dict[ErrorShape, type[BaseModel]] = {
    ErrorShape.OPENAI: OpenAIError,
    ErrorShape.TGI: TgiError,
    ErrorShape.ANTHROPIC: AnthropicError,
}
