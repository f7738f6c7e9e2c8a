"""Checks a dialog before a template sees it, and explains where one is out of order.

The shape of the JSON is the API's business; here it is about what a dialog of plain texts can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.text.errors import InvalidMessagesError

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def checked_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Give the messages as templates know them: role and text; "developer" is today's "system".

    Raises InvalidMessagesError, naming the message by its index.
    """
    if not messages:
        raise InvalidMessagesError("messages is empty; send at least one")
    return [_checked_turn(message, f"messages[{n}]") for n, message in enumerate(messages)]


def out_of_order(turns: Sequence[Mapping[str, str]]) -> str | None:
    """Say where the turns stop alternating, and what was expected there; None if they don't stop.

    Many templates want, after an optional system message, user and assistant in turn, the user
    first and last.
    """
    first = 1 if turns[0]["role"] == "system" else 0
    for index, turn in enumerate(turns[first:], start=first):
        expected = "user" if (index - first) % 2 == 0 else "assistant"
        if turn["role"] != expected:
            return f"messages[{index}] is of role {turn['role']!r}, expected {expected!r}"
    if turns[-1]["role"] != "user":
        return f"messages ends with role {turns[-1]['role']!r}, expected one more, of 'user'"
    return None


def _checked_turn(message: Mapping[str, Any], where: str) -> dict[str, str]:
    unknown = {key for key, value in message.items() if value is not None} - {"role", "content"}
    if unknown:
        names = ", ".join(repr(str(key)[:50]) for key in sorted(unknown, key=str)[:5])
        raise InvalidMessagesError(f"{where} has {names}; only role and content are supported")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidMessagesError(
            f"{where} is of role {str(role)[:50]!r}; supported are {', '.join(ROLES)}"
        )
    return {"role": ROLES[role], "content": _text(message.get("content"), where)}


def _text(content: object, where: str) -> str:
    if isinstance(content, list):
        # Apart, as other servers keep them: clients send one part per file or remark.
        return "\n".join(
            _part_text(part, f"{where}.content[{n}]") for n, part in enumerate(content)
        )
    if not isinstance(content, str):
        raise InvalidMessagesError(f"{where}.content is {_kind(content)}; send a string")
    return _well_formed(content, f"{where}.content")


def _part_text(part: object, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise InvalidMessagesError(
            f"{where} is of type {str(kind)[:50]!r}; this server takes only 'text'"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidMessagesError(f"{where}.text is {_kind(text)}; send a string")
    return _well_formed(text, f"{where}.text")


def _well_formed(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidMessagesError(
            f"{where} has a lone surrogate at position {error.start}; send well-formed Unicode"
        ) from error
    return text


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
