"""What a template is given of a request: everything in it that a user wrote.

Holds it together, so that control pieces are hidden in all of it alike, and marks where the last
message ends when it is to be continued.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from service.text.errors import InvalidMessagesError
from service.text.json_values import marks_size, texts_in, with_texts
from service.text.long_texts import characters_among

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.text.render_options import KwargValue
    from service.text.tool_turns import Turn

# Private use, apart from the stand-ins of `control_pieces`.
_MARKS = range(0x100000, 0x10FFFE)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns and tools as templates know them, and what was sent beside them."""

    turns: list[Turn]
    kwargs: dict[str, KwargValue] = field(default_factory=dict)
    documents: list[dict[str, str]] | None = None
    tools: list[dict[str, Any]] | None = None

    def texts(self) -> Iterator[str]:
        """Yield every text that a user wrote, at any depth of arguments and schemas."""
        for turn in self.turns:
            for key, value in turn.items():
                if key == "tool_calls":
                    for call in value:
                        yield call["id"]
                        yield from texts_in([*call["function"].values()])
                elif key != "role" and value is not None:
                    yield value
        yield from (value for value in self.kwargs.values() if isinstance(value, str))
        yield from texts_in(self.documents or ())
        for tool in self.tools or ():
            yield from texts_in([*tool["function"].values()])

    def with_texts(self, change: Callable[[str], str]) -> Dialogue:
        """Return it with each of these texts changed."""
        return Dialogue(
            turns=[_with_texts(turn, change) for turn in self.turns],
            kwargs={
                name: change(value) if isinstance(value, str) else value
                for name, value in self.kwargs.items()
            },
            documents=with_texts(self.documents, change),
            tools=self.tools and [_of_function(tool, change) for tool in self.tools],
        )

    def num_chars(self) -> int:
        """Count what it holds, with what JSON takes beyond texts."""
        num_chars = sum(map(len, self.texts()))
        calls = [call for turn in self.turns for call in turn.get("tool_calls", ())]
        return num_chars + (marks_size([calls, self.tools]) if calls or self.tools else 0)

    @property
    def says_nothing_last(self) -> bool:
        """Whether the last of several turns is empty."""
        return len(self.turns) > 1 and not self.turns[-1]["content"] and len(self.turns[-1]) == 2

    def without_last(self) -> Dialogue:
        """Return it without its last turn."""
        return replace(self, turns=self.turns[:-1])

    def variables(self) -> dict[str, Any]:
        """Return it as templates know it."""
        return {
            **self.kwargs,
            "messages": self.turns,
            "documents": self.documents,
            "tools": self.tools,
        }


def _with_texts(turn: Turn, change: Callable[[str], str]) -> Turn:
    changed: Turn = {}
    for key, value in turn.items():
        if key == "tool_calls":
            calls = [{**_of_function(call, change), "id": change(call["id"])} for call in value]
            changed[key] = calls
        else:
            changed[key] = value if key == "role" or value is None else change(value)
    return changed


def _of_function(called: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Change the texts of a tool, or of a call; the names of what it consists of are ours."""
    function = {name: with_texts(value, change) for name, value in called["function"].items()}
    return {**called, "function": function}


def mark_end(dialogue: Dialogue, template: str) -> tuple[Dialogue, str]:
    """Put a mark behind the last message, and return it: a character that occurs nowhere else.

    Templates strip contents; what stands before the mark stays as it was sent.
    """
    taken = characters_among(_MARKS, (template, *dialogue.texts()))
    mark = next((chr(code) for code in _MARKS if chr(code) not in taken), None)
    if mark is None:
        raise InvalidMessagesError(
            "the messages hold every private-use character of Unicode's plane 16; send fewer"
        )
    last = dialogue.turns[-1]
    marked = {**last, "content": last["content"] + mark}
    return replace(dialogue, turns=[*dialogue.turns[:-1], marked]), mark


def cut_at_mark(text: str, mark: str) -> str:
    """Return what a template wrote up to the end of the last message.

    Raises InvalidMessagesError where it did not write the message, or more than once.
    """
    if (times := text.count(mark)) != 1:
        found = "leaves it out" if times == 0 else f"writes it {times} times"
        raise InvalidMessagesError(
            f"the assistant's last message cannot be continued: this model's chat template {found};"
            " leave continue_final_message out, or send the dialog as a prompt to /v1/completions"
        )
    return text[: text.index(mark)]
