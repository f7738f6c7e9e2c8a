"""Writes one line for each request that has ended: numbers and names, never a text.

Formatted here and not by structlog, whose console form takes longer than all the rest of a line.
What clients choose (a model's name, an id) is quoted unless it is plain, so that no line can be
forged.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from service.observation.request_story import parts_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.observation.request_record import RequestRecord
    from service.observation.request_story import RequestStory

EVENT = "request"
LOGGER = "service.requests"
MAX_NAME = 100  # characters of a model's name that is not served
MAX_ADDRESS = 64  # characters; a proxy passes on what it was told
_PLAIN = re.compile(r"[A-Za-z0-9._:/+=@,-]+")


class RequestLog:
    """Forms the lines, and hands them to whatever writes."""

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        as_json: bool,
        slow_s: float,
        only_slow: bool = False,
    ) -> None:
        """only_slow: where the log's level is above `info`; a slow request is a warning."""
        self._write = write
        self._form = _json_line if as_json else _console_line
        self._slow_s = slow_s
        self._only_slow = only_slow

    def write(self, record: RequestRecord, story: RequestStory) -> None:
        """Write a request's line."""
        is_slow = story.is_slow(self._slow_s)
        if self._only_slow and not is_slow:
            return
        fields = _fields(record, story)
        if is_slow:
            fields |= {"slow": True, **_rounded(parts_of(record, story))}
        self._write(self._form("warning" if is_slow else "info", fields))


def _fields(record: RequestRecord, story: RequestStory) -> dict[str, object]:
    """Return what a line says, in its order; absent is what does not apply."""
    model = record.model or record.asked_model
    fields: dict[str, object] = {
        "request_id": record.request_id,
        "endpoint": record.endpoint,
        "caller": record.caller,
        "status": story.status,
        "outcome": story.outcome,
        "total_s": round(story.total_s, 3),
    }
    if record.address is not None:
        fields["address"] = record.address[:MAX_ADDRESS]
    if model is not None:
        fields["model"] = model[:MAX_NAME]
    if (tokens := story.tokens) is not None:
        fields |= {
            "prompt_tokens": tokens.prompt_tokens,
            "cached_tokens": tokens.cached_tokens,
            "generated_tokens": tokens.generated_tokens,
        }
        times = {"queue_s": tokens.queue_s, "first_token_s": tokens.first_token_s}
        fields |= _rounded({name: value for name, value in times.items() if value is not None})
        if tokens.tokens_per_s is not None:
            fields["tokens_per_s"] = round(tokens.tokens_per_s, 1)
    return fields


def _rounded(times: dict[str, float]) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in times.items()}


def _json_line(level: str, fields: dict[str, object]) -> str:
    return json.dumps(
        {**fields, "event": EVENT, "level": level, "logger": LOGGER, "timestamp": _timestamp()}
    )


# What a console line begins with, in columns.
_LEADING = ("status", "outcome", "total_s", "endpoint", "model")
_TOKENS = ("prompt_tokens", "cached_tokens", "generated_tokens")


def _console_line(level: str, fields: dict[str, object]) -> str:
    model = fields.get("model")
    begin = (
        f"{_timestamp()} [{level:<9}] {EVENT} {fields['status']}"
        f" {fields['outcome']:<20} {fields['total_s']:>8.3f} s  {fields['endpoint']:<21}"
        f" {'-' if model is None else plain(str(model))}"
    )
    tokens = ""
    if "prompt_tokens" in fields:
        tokens = (
            f"  {fields['prompt_tokens']} ({fields['cached_tokens']} cached)"
            f" + {fields['generated_tokens']} tokens"
        )
    shown = {*_LEADING, *_TOKENS}
    rest = " ".join(
        f"{name}={plain(value) if isinstance(value, str) else value}"
        for name, value in fields.items()
        if name not in shown
    )
    return f"{begin}{tokens}  {rest}"


def plain(text: str) -> str:
    """Return a text as it is where it is plain, else quoted, with what is special escaped."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _timestamp() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
