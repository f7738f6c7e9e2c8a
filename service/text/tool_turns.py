"""Calls of tools and their results: which belong together, and how templates see them.

Clients send results in any order, leave ids out where names or the order tell enough, and use any
text for an id. Here every call gets an id, every result its call's id and name, and the results
that follow a turn stand in the order of its calls, as templates without ids rely on.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from service.text.errors import InvalidMessagesError, InvalidTemplateOptionsError
from service.text.json_values import MAX_MARKS, fault_of, num_marks, read_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Turn: TypeAlias = dict[str, Any]
_NINE = re.compile(r"[0-9A-Za-z]{9}")
_MAX_SHOWN = 50  # characters
_MAX_LISTED = 5  # ids


class CallLike(Protocol):
    """A call of a tool; `service.tools.calls.ToolCall` is one."""

    @property
    def id(self) -> str:
        """What its result refers to; empty where nobody gave it an id."""

    @property
    def name(self) -> str:
        """The tool's."""

    @property
    def arguments(self) -> str:
        """The text of a JSON object, possibly empty."""


class ToolLike(Protocol):
    """A tool that a template is told of; `service.tools.calls.Tool` is one."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def description(self) -> str:
        """What it does; may be empty."""

    @property
    def parameters(self) -> Mapping[str, Any] | None:
        """A JSON schema of its arguments; None takes any object."""


@dataclass(frozen=True, slots=True)
class CheckedCall:
    """A call of which all is known."""

    id: str
    name: str
    text: str  # of its arguments, as they were sent
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CallStyle:
    """How a template takes calls."""

    has_text_arguments: bool = False  # the text of a JSON object; else the object itself
    has_nine_letter_ids: bool = False  # Mistral's refuse all others
    has_null_content: bool = False  # of a turn that only calls; else its content is ""


# In the order in which they are tried; the first that a template takes is the one.
CALL_STYLES = tuple(
    CallStyle(has_text_arguments=as_text, has_nine_letter_ids=nine, has_null_content=null)
    for nine in (False, True)
    for as_text in (False, True)
    for null in (False, True)
)


def require_few_values(messages: Iterable[Mapping[str, Any]]) -> None:
    """Raise InvalidMessagesError where the arguments of all calls together hold too many values.

    Before any are read: a request's own parts are counted, and those in texts are none of them.
    """
    left = MAX_MARKS
    for n, message in enumerate(messages):
        calls = message.get("tool_calls") if message.get("role") == "assistant" else None
        for place, call in enumerate(calls or ()):
            left -= num_marks(call.arguments)
            if left < 0:
                raise InvalidMessagesError(
                    f"messages[{n}].tool_calls[{place}]: the arguments of all calls so far hold"
                    f" more than {MAX_MARKS} values; send fewer"
                )


def checked_calls(calls: Iterable[CallLike], where: str) -> list[CheckedCall]:
    """Check the calls of one turn. Raises InvalidMessagesError, naming the place."""
    return [_checked_call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(calls)]


def _checked_call(call: CallLike, where: str) -> CheckedCall:
    if not call.name:
        raise InvalidMessagesError(f"{where} names no function; give the one that was called")
    if fault := fault_of([call.id, call.name]):
        raise InvalidMessagesError(f"{where} {fault}")
    text = call.arguments.strip() or "{}"
    if text == "null":
        text = "{}"
    try:
        arguments = read_object(text)
    except ValueError as error:
        raise InvalidMessagesError(
            f"{where}: the text of its arguments {error}; give the text of a JSON object"
        ) from error
    return CheckedCall(id=call.id, name=call.name, text=text, arguments=arguments)


def paired(turns: Sequence[Turn]) -> list[Turn]:
    """Give calls their ids and results their calls. Raises InvalidMessagesError.

    A result without an id belongs to the first call, of its name where it has one, that is without
    a result in the latest turn that calls. Calls without results are let through.
    """
    calls = _Calls()
    found = [_paired(turn, f"messages[{n}]", calls) for n, turn in enumerate(turns)]
    return _in_order_of_calls(found)


class _Calls:
    """The calls of a dialogue so far."""

    def __init__(self) -> None:
        self.made: dict[str, CheckedCall] = {}  # by id, the latest of each
        # Of the latest turn that called at all, and without a result yet. Of several of one id,
        # as where tools' names serve for ids, the first is answered first.
        self._open: list[CheckedCall] = []
        self._num_new = 0  # ids that were made or passed over: none is looked at twice

    def add(self, calls: Sequence[CheckedCall]) -> list[CheckedCall]:
        """Take a turn's calls; return them with ids."""
        self._open = []
        for call in calls:
            known = call if call.id else replace(call, id=self._new_id())
            self.made[known.id] = known
            self._open.append(known)
        return list(self._open)

    def answer(self, call_id: str | None, name: str | None) -> CheckedCall | None:
        """Find the call that a result belongs to."""
        for place, call in enumerate(self._open):
            if call.id == call_id if call_id else name in (None, call.name):
                del self._open[place]
                return call
        return self.made.get(call_id) if call_id else None

    def _new_id(self) -> str:
        while True:
            new = f"call{self._num_new:05}"
            self._num_new += 1
            if new not in self.made:
                return new


def _paired(turn: Turn, where: str, calls: _Calls) -> Turn:
    if "tool_calls" in turn:
        return {**turn, "tool_calls": calls.add(turn["tool_calls"])}
    if turn["role"] != "tool":
        return turn
    call_id, name = turn.get("tool_call_id"), turn.get("name")
    call = calls.answer(call_id, name)
    if call is None:
        raise InvalidMessagesError(_unknown_call(where, call_id, name, list(calls.made)))
    return {**turn, "tool_call_id": call.id, "name": call.name}


def _unknown_call(where: str, call_id: str | None, name: str | None, made: list[str]) -> str:
    if call_id:
        listed = ", ".join(repr(one[:_MAX_SHOWN]) for one in made[-_MAX_LISTED:])
        known = f"the last calls are {listed}" if listed else "there are no calls before it"
        return (
            f"{where}.tool_call_id is {call_id[:_MAX_SHOWN]!r}, which no earlier message calls;"
            f" {known}"
        )
    of = f" of {name[:_MAX_SHOWN]!r}" if name else ""
    return (
        f"{where} is the result{of} of a call, but no call{of} before it is without a result; send"
        " the assistant's message with its tool_calls too"
    )


def _in_order_of_calls(turns: Sequence[Turn]) -> list[Turn]:
    """Sort the results right behind a turn by the order of its calls; others keep their places."""
    ordered: list[Turn] = []
    results: list[Turn] = []
    places: dict[str, int] = {}
    for turn in turns:
        if turn["role"] == "tool":
            results.append(turn)
            continue
        ordered += sorted(results, key=lambda one: places.get(one["tool_call_id"], -1))
        ordered.append(turn)
        results = []
        places = {call.id: n for n, call in enumerate(turn.get("tool_calls", ()))}
    return ordered + sorted(results, key=lambda one: places.get(one["tool_call_id"], -1))


def one_call_each(turns: Sequence[Turn]) -> list[Turn]:
    """Split turns that call several tools, each call before its result.

    Several templates take one call a turn. What was said stays before the first.
    """
    split: list[Turn] = []
    for turn in turns:
        calls = turn.get("tool_calls", ())
        if turn["role"] == "tool":
            split.insert(_place_behind_call(split, turn["tool_call_id"]), turn)
        elif len(calls) > 1:
            split.append({**turn, "tool_calls": calls[:1]})
            split += [
                {"role": "assistant", "content": "", "tool_calls": [call]} for call in calls[1:]
            ]
        else:
            split.append(turn)
    return split


def _place_behind_call(turns: Sequence[Turn], call_id: str) -> int:
    """Find the place behind a call and its results among the calls at the end; else the end."""
    for place in range(len(turns), 0, -1):
        before = turns[place - 1]
        if before["role"] != "tool" and "tool_calls" not in before:
            break
        is_call = any(call.id == call_id for call in before.get("tool_calls", ()))
        if is_call or before.get("tool_call_id") == call_id:
            return place
    return len(turns)


def written_turns(turns: Sequence[Turn], style: CallStyle) -> list[Turn]:
    """Write turns in the shape in which templates know calls and results: OpenAI's."""
    return [_written_turn(turn, style) for turn in turns]


def _written_turn(turn: Turn, style: CallStyle) -> Turn:
    if "tool_calls" in turn:
        content = turn["content"] or (None if style.has_null_content else "")
        calls = [_written_call(call, style) for call in turn["tool_calls"]]
        return {**turn, "content": content, "tool_calls": calls}
    if turn["role"] == "tool":
        return {**turn, "tool_call_id": _written_id(turn["tool_call_id"], style)}
    return turn


def _written_call(call: CheckedCall, style: CallStyle) -> dict[str, Any]:
    arguments = call.text if style.has_text_arguments else call.arguments
    return {
        "id": _written_id(call.id, style),
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _written_id(call_id: str, style: CallStyle) -> str:
    if not style.has_nine_letter_ids or _NINE.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


def written_tools(tools: Iterable[ToolLike]) -> list[dict[str, Any]]:
    """Write tools as templates know them. Raises InvalidTemplateOptionsError.

    What a tool is silent of is written out, as templates add texts to it and look into it.
    """
    return [_written_tool(tool, f"tools[{n}]") for n, tool in enumerate(tools)]


def _written_tool(tool: ToolLike, where: str) -> dict[str, Any]:
    parameters = dict(tool.parameters or {"type": "object", "properties": {}})
    if fault := fault_of([tool.name, tool.description, parameters]):
        raise InvalidTemplateOptionsError(f"{where} {fault}", param="tools")
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}
