"""Puts an answer's items together out of a turn's parts, and tells each change as an event.

The same for whole answers, which need the items alone, and for streams, which send the events. Each
item that begins also ends, however the answer does: one that was cut off ends as incomplete. A call
that was cut off is no call, so it is not among the items of the answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from pydantic_core import from_json

from service.tools.turn_events import (
    CallArguments,
    CallBegin,
    ReasoningPiece,
    TextPiece,
    TurnEvent,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

Fields: TypeAlias = "dict[str, Any]"  # of an item, or of an event but for its number
Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class OpenItem(Protocol):
    """An item that has begun."""

    index: int  # in the answer's output

    @property
    def is_part_of_answer(self) -> bool:
        """Whether the answer holds it, now that it has ended."""

    def begin(self) -> list[Fields]:
        """Return the events of its beginning."""

    def end(self, status: Status) -> list[Fields]:
        """Return the events of its end."""

    def item(self, status: Status) -> Fields:
        """Return it as far as it is known."""


class _TextItem(ABC):
    """An item whose one part is a text."""

    is_part_of_answer = True
    kind: ClassVar[str]  # of the text's events

    def __init__(self, item_id: str, index: int) -> None:
        self.index = index
        self._id = item_id
        self._place = {"item_id": item_id, "output_index": index, "content_index": 0}
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def begin(self) -> list[Fields]:
        item = self.item("in_progress") | {"content": []}
        return [_item_event("added", self.index, item), self._part_event("added")]

    def push(self, text: str, **told: Sequence[Any]) -> list[Fields]:
        self._pieces.append(text)
        return [{"type": f"response.{self.kind}.delta", **self._place, "delta": text, **told}]

    def end(self, status: Status) -> list[Fields]:
        part = {name: value for name, value in self.part().items() if name in ("text", "logprobs")}
        return [
            {"type": f"response.{self.kind}.done", **self._place, **part},
            self._part_event("done"),
            _item_event("done", self.index, self.item(status)),
        ]

    @abstractmethod
    def item(self, status: Status) -> Fields:
        """Return it as far as it is known."""

    @abstractmethod
    def part(self) -> Fields:
        """Return its text as far as it is known."""

    def _part_event(self, what: str) -> Fields:
        return {"type": f"response.content_part.{what}", **self._place, "part": self.part()}


class _Message(_TextItem):
    """A text that people read."""

    kind = "output_text"

    def __init__(self, item_id: str, index: int) -> None:
        super().__init__(item_id, index)
        self._logprobs: list[Any] = []

    def push(self, text: str, **told: Sequence[Any]) -> list[Fields]:
        self._logprobs += told["logprobs"]
        return super().push(text, **told)

    def item(self, status: Status) -> Fields:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [self.part()],
        }

    def part(self) -> Fields:
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": list(self._logprobs),
        }


class _Reasoning(_TextItem):
    """What the model thinks."""

    kind = "reasoning_text"

    def item(self, status: Status) -> Fields:
        return {
            "id": self._id,
            "type": "reasoning",
            "summary": [],
            "content": [self.part()],
            "encrypted_content": None,
            "status": status,
        }

    def part(self) -> Fields:
        return {"type": "reasoning_text", "text": self.text}


class _FunctionCall:
    """A call of a function."""

    is_part_of_answer = False  # before its end it is no call

    def __init__(self, item_id: str, index: int, call: CallBegin) -> None:
        self.index = index
        self._id = item_id
        self._place = {"item_id": item_id, "output_index": index}
        self._call = call
        self._pieces: list[str] = []

    def begin(self) -> list[Fields]:
        return [_item_event("added", self.index, self.item("in_progress"))]

    def push(self, text: str) -> list[Fields]:
        self._pieces.append(text)
        return [{"type": "response.function_call_arguments.delta", **self._place, "delta": text}]

    def end(self, status: Status) -> list[Fields]:
        self.is_part_of_answer = status == "completed"
        done = {"name": self._call.name, "arguments": "".join(self._pieces)}
        return [
            {"type": "response.function_call_arguments.done", **self._place, **done},
            _item_event("done", self.index, self.item(status)),
        ]

    def item(self, status: Status) -> Fields:
        return {
            "id": self._id,
            "type": "function_call",
            "call_id": self._call.id,
            "name": self._call.name,
            "arguments": "".join(self._pieces),
            "status": status,
        }


class _CustomCall(_FunctionCall):
    """A call of a custom tool: its text is the one argument, known once that is complete."""

    _input = ""

    def push(self, text: str) -> list[Fields]:
        self._pieces.append(text)
        return []

    def end(self, status: Status) -> list[Fields]:
        self.is_part_of_answer = status == "completed"
        if self.is_part_of_answer:
            self._input = _input_of("".join(self._pieces))
        kind = "response.custom_tool_call_input"
        told = [{"type": f"{kind}.delta", **self._place, "delta": self._input}]
        return [
            *(told if self._input else ()),
            {"type": f"{kind}.done", **self._place, "input": self._input},
            _item_event("done", self.index, self.item(status)),
        ]

    def item(self, status: Status) -> Fields:
        return {
            "id": self._id,
            "type": "custom_tool_call",
            "call_id": self._call.id,
            "name": self._call.name,
            "input": self._input,
            "status": status,
        }


class TurnOutput:
    """The items of one answer, as they come."""

    def __init__(self, name: str, custom_tools: frozenset[str] = frozenset()) -> None:
        """name: what the ids of items are made of. custom_tools: names of those."""
        self._name = name
        self._custom_tools = custom_tools
        self._num_begun = 0
        self._items: dict[int, Fields] = {}  # of the answer, those that have ended
        # What is open: one of both texts at most, and calls by their index in the turn.
        self._message: _Message | None = None
        self._thoughts: _Reasoning | None = None
        self._calls: dict[int, _FunctionCall] = {}

    @property
    def items(self) -> list[Fields]:
        """Return the items of the answer that have ended."""
        return [item for _, item in sorted(self._items.items())]

    def push(self, event: TurnEvent, logprobs: Sequence[Any] = ()) -> list[Fields]:
        """Return the events of what comes next; logprobs: of a text's tokens."""
        if isinstance(event, TextPiece):
            return self._say(event.text, logprobs)
        if isinstance(event, ReasoningPiece):
            return self._think(event.text)
        if isinstance(event, CallBegin):
            return self._begin_call(event)
        if isinstance(event, CallArguments):
            return self._calls[event.index].push(event.text)
        return self._end(self._calls.pop(event.index), "completed")

    def finish(self, *, is_cut: bool) -> list[Fields]:
        """Return the events of the end; an answer that says nothing is an empty message."""
        begun = [] if self._num_begun else self._open_message()[1]
        return begun + self._end_all("incomplete" if is_cut else "completed")

    def break_off(self) -> list[Fields]:
        """Return the events that end what is open, where the answer fails."""
        return self._end_all("incomplete")

    def _say(self, text: str, logprobs: Sequence[Any]) -> list[Fields]:
        message, events = self._open_message()
        return events + message.push(text, logprobs=logprobs)

    def _open_message(self) -> tuple[_Message, list[Fields]]:
        """Return the message that is open, and the events of its beginning if it begins now."""
        if self._message is not None:
            return self._message, []
        events = self._end_texts("completed")
        message = self._message = _Message(*self._new_place("msg"))
        return message, events + message.begin()

    def _think(self, text: str) -> list[Fields]:
        events: list[Fields] = []
        if self._thoughts is None:
            events += self._end_texts("completed")
            self._thoughts = _Reasoning(*self._new_place("rs"))
            events += self._thoughts.begin()
        return events + self._thoughts.push(text)

    def _begin_call(self, event: CallBegin) -> list[Fields]:
        events = self._end_texts("completed")
        is_custom = event.name in self._custom_tools
        kind, prefix = (_CustomCall, "ctc") if is_custom else (_FunctionCall, "fc")
        call = self._calls[event.index] = kind(*self._new_place(prefix), event)
        return events + call.begin()

    def _end_all(self, status: Status) -> list[Fields]:
        events = self._end_texts(status)
        for call in self._calls.values():  # without an end of their own they were cut off
            events += self._end(call, "incomplete")
        self._calls = {}
        return events

    def _end_texts(self, status: Status) -> list[Fields]:
        events: list[Fields] = []
        for text in (self._thoughts, self._message):
            events += [] if text is None else self._end(text, status)
        self._thoughts = self._message = None
        return events

    def _end(self, item: OpenItem, status: Status) -> list[Fields]:
        events = item.end(status)
        if item.is_part_of_answer:
            self._items[item.index] = item.item(status)
        return events

    def _new_place(self, prefix: str) -> tuple[str, int]:
        index = self._num_begun
        self._num_begun += 1
        return f"{prefix}_{self._name}_{index}", index


def _item_event(what: str, index: int, item: Fields) -> Fields:
    return {"type": f"response.output_item.{what}", "output_index": index, "item": item}


def _input_of(arguments: str) -> str:
    """Return the text that a custom tool is called with; else all that it gave."""
    try:
        given = from_json(arguments)  # refuses lone surrogates, which no answer can hold
    except ValueError:
        return arguments
    text = given.get("input") if isinstance(given, dict) else None
    return text if isinstance(text, str) else arguments
