"""What every answer of OpenAI's endpoints says of itself: id, model, tokens used."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from service.api.answer_model import AnswerModel

if TYPE_CHECKING:
    from service.serving.generation import Usage as CountedTokens
    from service.serving.served_model import ServedModel


class PromptTokensDetails(AnswerModel):
    """Where a prompt's tokens came from."""

    cached_tokens: int = Field(description="Known from earlier prompts that began alike.")


class CompletionTokensDetails(AnswerModel):
    """What an answer's tokens were for."""

    reasoning_tokens: int = Field(description="Between the marks of the model's thoughts.")


class Usage(AnswerModel):
    """Tokens read and made."""

    prompt_tokens: int = Field(description="A prompt counts once, however many choices it has.")
    completion_tokens: int = Field(description="Every generated token, also one that ends.")
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def usage_of(counted: CountedTokens) -> Usage:
    """Return the tokens of a request as OpenAI's API tells them."""
    return Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=counted.cached_tokens),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=counted.reasoning_tokens
        ),
    )


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an answer's every chunk says of the answer."""

    id: str
    created: int  # seconds since 1970
    model: str
    system_fingerprint: str

    def fields(self, object_name: str) -> dict[str, Any]:
        """Return its fields in the order in which they are sent."""
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


def make_envelope(prefix: str, model: ServedModel, request_id: str | None) -> Envelope:
    """Return a new answer's envelope; its id holds the request_id, else something random."""
    name = request_id or uuid.uuid4().hex
    return Envelope(f"{prefix}-{name}", int(time.time()), model.name, model.identity.fingerprint)
