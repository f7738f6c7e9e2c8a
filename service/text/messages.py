"""Checks a dialogue before a template sees it, and explains where one is out of order.

The shape of the JSON is the API's business; here it is about what a dialogue of plain texts can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.text.errors import InvalidMessagesError

# What a message may carry beside its text; templates that do not read it are not given it.
EXTRAS = ("name", "reasoning_content")
_KNOWN = {"role", "content", "reasoning", *EXTRAS}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def checked_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Give the messages as templates know them: role and text, and `EXTRAS` where they have them.

    "developer" is today's "system", "reasoning" another name of "reasoning_content". Clients send
    answers back with all their fields, so what is null or empty counts as absent.
    Raises InvalidMessagesError, naming the message by its index.
    """
    if not messages:
        raise InvalidMessagesError("messages is empty; send at least one")
    return [_checked_turn(message, f"messages[{n}]") for n, message in enumerate(messages)]


def out_of_order(turns: Sequence[Mapping[str, str]], *, last: str = "user") -> str | None:
    """Say where the turns stop alternating, and what was expected there; None if they don't stop.

    Many templates want, after an optional system message, user and assistant in turn, the user
    first and, unless an answer is to be continued, last.
    """
    first = 1 if turns[0]["role"] == "system" else 0
    for index, turn in enumerate(turns[first:], start=first):
        expected = "user" if (index - first) % 2 == 0 else "assistant"
        if turn["role"] != expected:
            return f"messages[{index}] is of role {turn['role']!r}, expected {expected!r}"
    if turns[-1]["role"] != last:
        return f"messages ends with role {turns[-1]['role']!r}, expected one more, of {last!r}"
    return None


def _checked_turn(message: Mapping[str, Any], where: str) -> dict[str, str]:
    given = {key: value for key, value in message.items() if not _is_empty(value)}
    unknown = given.keys() - _KNOWN
    if unknown:
        names = ", ".join(repr(str(key)[:50]) for key in sorted(unknown, key=str)[:5])
        raise InvalidMessagesError(
            f"{where} has {names}; supported are role, content, {', '.join(EXTRAS)}"
        )
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidMessagesError(
            f"{where} is of role {str(role)[:50]!r}; supported are {', '.join(ROLES)}"
        )
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""  # an answer that said nothing
    turn = {"role": ROLES[role], "content": _text(content, where)}
    given.setdefault("reasoning_content", given.get("reasoning"))
    for name in EXTRAS:
        if given.get(name) is not None:
            turn[name] = _string(given[name], f"{where}.{name}")
    return turn


def _is_empty(value: object) -> bool:
    return value is None or value in ("", [], {})


def _text(content: object, where: str) -> str:
    if isinstance(content, list):
        # Apart, as other servers keep them: clients send one part per file or remark.
        return "\n".join(
            _part_text(part, f"{where}.content[{n}]") for n, part in enumerate(content)
        )
    return _string(content, f"{where}.content")


def _part_text(part: object, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise InvalidMessagesError(
            f"{where} is of type {str(kind)[:50]!r}; this server takes only 'text'"
        )
    return _string(part.get("text"), f"{where}.text")


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        kind = "missing" if value is None else f"of type {type(value).__name__}"
        raise InvalidMessagesError(f"{where} is {kind}; send a string")
    return well_formed(value, where)


def well_formed(text: str, where: str) -> str:
    """Return the text; raises InvalidMessagesError, naming its place, for a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidMessagesError(
            f"{where} has a lone surrogate at position {error.start}; send well-formed Unicode"
        ) from error
    return text
