"""One piece of an answer that is streamed, of a chat or of a completion."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from service.client.errors import BrokenAnswerError


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """How many tokens a request took."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """What one event of the stream adds."""

    text: str = ""
    reasoning: str = ""  # thoughts before the answer, of models that mark them
    finish_reason: str | None = None  # in the last piece that belongs to the text
    usage: TokenUsage | None = None  # where it was asked for


def read_piece(data: str) -> AnswerPiece:
    """Read an event's data. Raises BrokenAnswerError for an error that the server tells in it."""
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        chunk = None
    if not isinstance(chunk, dict):
        raise BrokenAnswerError("the server sent what is no piece of an answer")
    if chunk.get("error"):
        raise BrokenAnswerError(f"the answer failed: {message_of(chunk['error'])}")
    choice = _first_object(chunk.get("choices"))
    delta = _object(choice.get("delta"))
    return AnswerPiece(
        text=_text(delta.get("content")) or _text(choice.get("text")),
        reasoning=_text(delta.get("reasoning_content")) or _text(delta.get("reasoning")),
        finish_reason=_text(choice.get("finish_reason")) or None,
        usage=_usage(_object(chunk.get("usage"))),
    )


def message_of(error: object) -> str:
    """Return what an error says, whichever server's shape it has."""
    if isinstance(error, dict):
        return _text(error.get("message")) or json.dumps(error)[:500]
    return str(error)


def _usage(counts: dict[str, Any]) -> TokenUsage | None:
    prompt, answer = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(answer, int):
        return None
    return TokenUsage(prompt, answer)


def _first_object(value: object) -> dict[str, Any]:
    return _object(value[0]) if isinstance(value, list) and value else {}


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
