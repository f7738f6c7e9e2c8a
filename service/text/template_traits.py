"""What a chat template does with a dialogue, found by letting it write small ones.

Which fields it reads, what it writes behind an answer, whether it takes system turns, tools, calls
and results, and in which shape, and whether it has the model think first. `templates` asks once,
when a template is made ready.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from service.text.dialogue import Dialogue
from service.text.errors import InvalidMessagesError, TemplateFailedError
from service.text.messages import EXTRAS
from service.text.tool_turns import CALL_STYLES, CallStyle, CheckedCall, written_turns

if TYPE_CHECKING:
    from collections.abc import Collection

    from service.text.control_pieces import ControlPieces
    from service.text.tool_turns import Turn

_ANSWER = "probe answer"
_QUESTION = {"role": "user", "content": "probe question"}
_PROBE = (_QUESTION, {"role": "assistant", "content": _ANSWER}, _QUESTION)
_SYSTEM = "probe rule"
_TOOL_NAME, _FIELD = "probe_tool", "probe_field"
# Not the tool's own field, so that it is seen how the call alone is written.
_KEY, _VALUE, _RESULT = "probe_key", "probe value", "probe result"
_TOOL = {
    "type": "function",
    "function": {
        "name": _TOOL_NAME,
        "description": "probe description",
        "parameters": {
            "type": "object",
            "properties": {_FIELD: {"type": "string", "description": "probe words"}},
            "required": [_FIELD],
        },
    },
}
# Of three kinds: as short as clients may choose, as OpenAI's, and the only one that Mistral takes.
_IDS = ("c1", "call_0123456789abcdefghijklmn", "probe0001")
# What a model's thoughts stand between, in the order in which they are looked for.
REASONING_MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
)


class Render(Protocol):
    """Writes a dialogue by the template."""

    def __call__(self, dialogue: Dialogue, *, add_generation_prompt: bool) -> str:
        """Raise InvalidMessagesError or TemplateFailedError."""


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """What was found."""

    extras: frozenset[str]  # of `EXTRAS`, what it reads
    turn_end_ids: frozenset[int]  # the control piece behind an answer; none where it writes text
    takes_system: bool
    takes_tools: bool
    call_style: CallStyle | None  # None where it does not take calls and their results
    takes_parallel_calls: bool  # several in one turn
    reasoning_marks: tuple[str, str] | None
    opens_reasoning: bool  # where it asks for an answer, the model is already thinking


def find_traits(
    render: Render, source: str, pieces: ControlPieces, vocabulary: Collection[str]
) -> TemplateTraits:
    """Look at a template.

    vocabulary: the pieces that the tokenizer has beside its ordinary ones.
    Raises TemplateFailedError where it breaks on an ordinary dialogue.
    """
    usual = _usual(render)
    takes_tools = "tools" in source and _takes_tools(render)
    style = _find_call_style(render, [_TOOL] if takes_tools else None)
    marks = _find_marks(source, vocabulary)
    return TemplateTraits(
        extras=_find_extras(render, source, usual),
        turn_end_ids=_find_turn_end(usual, pieces),
        takes_system=_takes_system(render),
        takes_tools=takes_tools,
        call_style=style,
        takes_parallel_calls=style is not None
        and _is_written(_calls_text(render, style, [_TOOL] if takes_tools else None, num_calls=2)),
        reasoning_marks=marks,
        opens_reasoning=marks is not None and ends_open(_text(render, [_QUESTION]), marks),
    )


def ends_open(text: str | None, marks: tuple[str, str]) -> bool:
    """Whether a prompt ends with the beginning of the model's thoughts."""
    return text is not None and text.rstrip().endswith(marks[0])


def _find_marks(source: str, vocabulary: Collection[str]) -> tuple[str, str] | None:
    for marks in REASONING_MARKS:
        if any(mark in source for mark in marks) or all(mark in vocabulary for mark in marks):
            return marks
    return None


def _text(
    render: Render, turns: list[Turn], tools: list[dict[str, Any]] | None = None
) -> str | None:
    """Render an unusual dialogue; None where the template refuses it or breaks on it."""
    try:
        return render(Dialogue(turns, tools=tools), add_generation_prompt=True)
    except (InvalidMessagesError, TemplateFailedError):
        return None


def _usual(render: Render, **fields: str) -> str | None:
    """Render an ordinary dialogue; None where the template refuses it."""
    try:
        dialogue = Dialogue([{**turn, **fields} for turn in _PROBE])
        return render(dialogue, add_generation_prompt=True)
    except InvalidMessagesError:
        return None


def _find_turn_end(usual: str | None, pieces: ControlPieces) -> frozenset[int]:
    if usual is None:
        return frozenset()
    _, found, rest = usual.partition(_ANSWER)
    end = pieces.id_at(rest.lstrip()) if found else None
    return frozenset() if end is None else frozenset({end})


def _find_extras(render: Render, source: str, usual: str | None) -> frozenset[str]:
    """See which fields of messages the template reads, beside role and text.

    Reasoning is written for some turns only, so what the source mentions counts. A "name" is
    mentioned wherever tools are, so it is tried.
    """
    mentioned = {name for name in EXTRAS if re.search(rf"\b{name}\b", source)}
    if "name" in mentioned and usual == _usual(render, name="probe_name"):
        mentioned.remove("name")
    return frozenset(mentioned)


def _takes_system(render: Render) -> bool:
    text = _text(render, [{"role": "system", "content": _SYSTEM}, _QUESTION])
    return text is not None and _SYSTEM in text


def _takes_tools(render: Render) -> bool:
    text = _text(render, [_QUESTION], [_TOOL])
    return text is not None and _TOOL_NAME in text


def _find_call_style(render: Render, tools: list[dict[str, Any]] | None) -> CallStyle | None:
    """Find the shape in which calls and results are written as they should be."""
    for style in CALL_STYLES:
        text = _calls_text(render, style, tools)
        if not _is_written(text):
            continue
        if style.has_null_content:
            return style
        # Some write a turn of its own for a content that is "", and one that is null they leave
        # out; others write "None" for it. So what is shorter has nothing where nothing was said.
        null = CallStyle(style.has_text_arguments, style.has_nine_letter_ids, has_null_content=True)
        other = _calls_text(render, null, tools)
        is_shorter = _is_written(other) and len(other or "") < len(text or "")
        return null if is_shorter else style
    return None


def _calls_text(
    render: Render, style: CallStyle, tools: list[dict[str, Any]] | None, num_calls: int = 1
) -> str | None:
    """Render calls with results, under ids of each kind that the style allows; None if refused."""
    texts = []
    for first_id in (_IDS[2],) if style.has_nine_letter_ids else _IDS[:2]:
        ids = [first_id, _IDS[2][::-1]][:num_calls]
        arguments = {_KEY: _VALUE}
        calls = [
            CheckedCall(one, _TOOL_NAME, f'{{"{_KEY}": "{_VALUE}"}}', arguments) for one in ids
        ]
        results = [
            {"role": "tool", "content": _RESULT, "tool_call_id": one, "name": _TOOL_NAME}
            for one in ids
        ]
        called: Turn = {"role": "assistant", "content": "", "tool_calls": calls}
        turns = written_turns([_QUESTION, called, *results], style)
        texts.append(_text(render, turns, tools))
    return texts[0] if None not in texts else None


def _is_written(text: str | None) -> bool:
    """Whether calls are there, their arguments neither in Python's words nor as text in a text."""
    if text is None or any(part not in text for part in (_VALUE, _RESULT)):
        return False
    is_python = f"'{_KEY}'" in text and f'"{_KEY}"' not in text
    return not is_python and f'\\"{_KEY}' not in text
