"""Checks a dialogue before a template sees it, and explains where one is out of order.

The shape of the JSON is the API's business; here it is about what a dialogue of plain texts can be.
Which call a tool's result belongs to is found in `tool_turns`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from service.text.errors import InvalidMessagesError
from service.text.tool_turns import checked_calls, paired, require_few_values

if TYPE_CHECKING:
    from service.text.tool_turns import Turn

# What a message may carry beside its text; templates that do not read it are not given it.
EXTRAS = ("name", "reasoning_content")
_OTHERS = (*EXTRAS, "tool_calls", "tool_call_id")
_KNOWN = {"role", "content", "reasoning", *_OTHERS}
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_SYSTEM_ROLES = [role for role, meaning in ROLES.items() if meaning == "system"]
# What belongs to the turns of one role.
_ONLY_OF = {"tool_calls": "assistant", "tool_call_id": "tool"}
_MAY_SAY_NOTHING = ("assistant", "tool")


def checked_turns(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Give the messages with role and text, and `EXTRAS` where they have them.

    "developer" is today's "system", "reasoning" another name of "reasoning_content". Clients send
    answers back with all their fields, so what is null or empty counts as absent. An assistant's
    turn has as `tool_calls` a list of `CheckedCall` where it calls tools (`CallLike`); a tool's has
    the id and the name of its call.
    Raises InvalidMessagesError, naming the message by its index.
    """
    if not messages:
        raise InvalidMessagesError("messages is empty; send at least one")
    require_few_values(messages)
    turns = [_checked_turn(message, f"messages[{n}]") for n, message in enumerate(messages)]
    return paired(turns)


def out_of_order(turns: Sequence[Mapping[str, Any]], *, last: str = "user") -> str | None:
    """Say where the turns stop alternating, and what was expected there; None if they don't stop.

    Many templates want, after an optional system message, user and assistant in turn, the user
    first and, unless an answer is to be continued, last. Calls and results stand in between, where
    the assistant would speak, and do not count.
    """
    first = 1 if turns[0]["role"] == "system" else 0
    expected = "user"
    for index, turn in enumerate(turns[first:], start=first):
        if turn["role"] == "tool" or turn.get("tool_calls"):
            continue
        if turn["role"] != expected:
            return f"messages[{index}] is of role {turn['role']!r}, expected {expected!r}"
        expected = "assistant" if expected == "user" else "user"
    ends = turns[-1]["role"]
    if turns[-1].get("tool_calls"):
        return "messages ends with calls of tools, expected their results"
    if ends != last and not (ends == "tool" and last == "user"):
        return f"messages ends with role {ends!r}, expected one more, of {last!r}"
    return None


def with_system_text(
    turns: Sequence[Mapping[str, Any]], text: str, *, takes_system: bool = True
) -> list[Turn]:
    """Put a text behind that of the first system turn, or where there is none, into one of its own.

    takes_system: whether the template takes such turns; else it stands before the first user's.
    """
    changed: list[Turn] = [dict(turn) for turn in turns]
    system = next((turn for turn in changed if turn["role"] in _SYSTEM_ROLES), None)
    if system is not None:
        system["content"] = "\n\n".join(filter(None, (_told(system), text)))
        return changed
    user = next((turn for turn in changed if turn["role"] == "user"), None)
    if takes_system or user is None:
        return [{"role": "system", "content": text}, *changed]
    user["content"] = "\n\n".join(filter(None, (text, _told(user))))
    return changed


def _told(turn: Turn) -> str:
    return _text(turn.get("content") or "", turn["role"])


def _checked_turn(message: Mapping[str, Any], where: str) -> Turn:
    given = {key: value for key, value in message.items() if not _is_empty(value)}
    unknown = given.keys() - _KNOWN
    if unknown:
        names = ", ".join(repr(str(key)[:50]) for key in sorted(unknown, key=str)[:5])
        raise InvalidMessagesError(
            f"{where} has {names}; supported are role, content, {', '.join(_OTHERS)}"
        )
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidMessagesError(
            f"{where} is of role {str(role)[:50]!r}; supported are {', '.join(ROLES)}"
        )
    for name, owner in _ONLY_OF.items():
        if name in given and role != owner:
            raise InvalidMessagesError(
                f"{where} is of role {role!r} and has {name!r}, which only {owner!r} has"
            )
    content = message.get("content")
    if content is None and role in _MAY_SAY_NOTHING:
        content = ""  # an answer that said nothing, or a tool that gave nothing back
    turn: Turn = {"role": ROLES[role], "content": _text(content, where)}
    if "tool_calls" in given:
        turn["tool_calls"] = checked_calls(given["tool_calls"], where)
    if "tool_call_id" in given:
        turn["tool_call_id"] = _string(given["tool_call_id"], f"{where}.tool_call_id")
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
