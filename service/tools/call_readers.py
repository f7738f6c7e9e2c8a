"""Reads calls out of what models write, each in the way that it was trained to write them.

What is no call after all - a name that no tool has, arguments that are no JSON object - is given
back as the text that it is, so nothing of what a model wrote is lost but white space around calls.
A call is told as it comes, and nothing is told twice: one that breaks later, or that a stop string
or the length cuts off, gets no `CallEnd` and is no text either; what follows where it broke is.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

from service.tools.call_scanner import CallScanner
from service.tools.marked_text import SPACES, MarkedText
from service.tools.turn_events import CallArguments, CallBegin, CallEnd, TextPiece

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from service.tools.turn_events import TurnEvent

TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"  # Hermes, Qwen
PYTHON_TAG = "<|python_tag|>"  # Llama 3
TOOL_CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"  # Mistral

_HEADER = re.compile(r"([\w-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?\[ARGS\]", re.ASCII)
_NO_HEADER = re.compile(r"[^\w\s\[\]-]", re.ASCII)
MAX_HEADER_CHARS = 256


class CallReader:
    """What the readers share: text up to a mark, then a call; each says what comes around it.

    Every state takes some text and returns the rest of it, for the next one.
    """

    mark = TOOL_CALL

    def __init__(self, names: Collection[str], *, only_calls: bool = False) -> None:
        """names: of the tools that may be called. only_calls: a mark is all that may come first."""
        self.num_calls = 0
        self._names = frozenset(names)
        self._num_begun = 0
        self._events: list[TurnEvent] = []
        self._text = MarkedText(self.mark, drops_leading=only_calls)
        self._state: Callable[[str], str] = self._in_text
        self._scanner = CallScanner(self._names)
        self._raw: list[str] = []  # of what may be a call, since its mark; empty once it is told
        self._is_certain = False  # whether that is a call, or was to become one
        self._is_begun = False  # whether it has been told
        self._partial = ""  # of a mark, held back outside of texts

    def push(self, text: str) -> Sequence[TurnEvent]:
        """Return what this text adds, as far as it is decided."""
        while text:
            text = self._state(text)
        return self._take_events()

    def flush(self, *, is_cut: bool) -> Sequence[TurnEvent]:
        """Return the rest, once the text is at its end; is_cut: by length, not by the model."""
        if self._state == self._in_text:
            if not (is_cut and self._text.is_at_beginning):  # else it is part of a mark
                self._tell(self._text.flush())
        elif self._raw and not (is_cut and self._is_certain):
            self._tell("".join(self._raw) + self._partial)
        elif not is_cut:
            self._tell(self._partial)
        self._raw, self._partial = [], ""
        self._go_on_as_text()
        return self._take_events()

    def _in_text(self, text: str) -> str:
        safe, rest = self._text.push(text)
        self._tell(safe)
        if rest is None:
            return ""
        self._raw = [self._text.take_spaces() + self.mark]
        self._is_certain = True
        self._begin_call()
        return rest

    def _begin_call(self) -> None:
        """Go on behind a mark."""
        self._scan(CallScanner(self._names))

    def _scan(self, scanner: CallScanner) -> None:
        self._scanner, self._is_begun = scanner, False
        self._state = self._in_call

    def _in_call(self, text: str) -> str:
        scanner = self._scanner
        end = scanner.take(text)
        if arguments := scanner.new_arguments():
            self._begin_told(scanner.name)
            self._events.append(CallArguments(self._num_begun - 1, arguments))
        if not self._is_begun:
            self._raw.append(text[:end])
        if scanner.is_complete:
            self._events.append(CallEnd(self._num_begun - 1))
            self.num_calls += 1
            self._is_certain, self._is_begun = False, False
            self._state = self._after_call
        elif scanner.is_broken:
            self._give_back()
        return text[end:]

    def _begin_told(self, name: str | None) -> None:
        if self._is_begun or name is None:
            return
        self._raw, self._is_begun = [], True
        self._events.append(CallBegin(self._num_begun, f"call_{secrets.token_hex(12)}", name))
        self._num_begun += 1

    def _after_call(self, text: str) -> str:
        """Take what follows a call; by default text, or the next call."""
        self._go_on_as_text(drops_leading=True)
        return text

    def _give_back(self) -> None:
        """Take what was no call for text, as far as it has not been told as one."""
        self._tell("".join(self._raw))
        self._raw, self._is_certain, self._is_begun = [], False, False
        self._go_on_as_text()

    def _go_on_as_text(self, *, drops_leading: bool = False) -> None:
        self._text = MarkedText(self.mark, drops_leading=drops_leading)
        self._state = self._in_text

    def _tell(self, text: str) -> None:
        if text:
            self._events.append(TextPiece(text))

    def _take_events(self) -> Sequence[TurnEvent]:
        events, self._events = self._events, []
        return events


class HermesReader(CallReader):
    """Reads `<tool_call>{"name": …, "arguments": …}</tool_call>`, any number of them."""

    def _after_call(self, text: str) -> str:
        text = (self._partial + text).lstrip(SPACES)
        if TOOL_CALL_END.startswith(text):
            self._partial = text
            if text != TOOL_CALL_END:
                return ""
        self._partial = ""
        self._go_on_as_text(drops_leading=True)
        return text.removeprefix(TOOL_CALL_END)


class Llama3Reader(CallReader):
    """Reads an answer that is `{"name": …, "parameters": …}`, or several with `;` between."""

    mark = PYTHON_TAG

    def __init__(self, names: Collection[str], *, only_calls: bool = False) -> None:
        super().__init__(names, only_calls=only_calls)
        self._is_certain = only_calls
        self._state = self._at_start

    def _at_start(self, text: str) -> str:
        """Take what an answer begins with: a call, or anything else."""
        text = self._partial + text
        rest = text.lstrip(SPACES)
        self._raw.append(text[: len(text) - len(rest)])
        if not self._is_call(rest):
            rest, self._raw = "".join(self._raw) + rest, []
            self._go_on_as_text()
        return self._behind_mark(rest)

    def _after_call(self, text: str) -> str:
        rest = (self._partial + text).lstrip(SPACES + ";")
        if not self._is_call(rest):
            self._go_on_as_text(drops_leading=True)
        self._is_certain = True  # nothing else begins like that behind a call
        return self._behind_mark(rest)

    def _is_call(self, text: str) -> bool:
        """Whether a call begins here, or may yet begin."""
        return text.startswith(("{", PYTHON_TAG)) or PYTHON_TAG.startswith(text)

    def _behind_mark(self, text: str) -> str:
        """Go on with what begins like a call; return what is left of it."""
        self._partial = ""
        if self._state == self._in_text:
            return text
        if text.startswith("{"):
            self._begin_call()
            return text
        if text.startswith(PYTHON_TAG):
            self._raw.append(PYTHON_TAG)
            self._is_certain = True
            self._begin_call()
            return text.removeprefix(PYTHON_TAG)
        self._partial = text
        return ""


class MistralReader(CallReader):
    """Reads `[TOOL_CALLS] [{"name": …, "arguments": …}, …]` and `[TOOL_CALLS]name[ARGS]{…}`."""

    mark = TOOL_CALLS

    def __init__(self, names: Collection[str], *, only_calls: bool = False) -> None:
        super().__init__(names, only_calls=only_calls)
        self._in_list = False
        self._header = ""

    def _begin_call(self) -> None:
        self._in_list, self._header = False, ""
        self._state = self._behind_tool_calls

    def _behind_tool_calls(self, text: str) -> str:
        rest = text.lstrip(SPACES)
        self._raw.append(text[: len(text) - len(rest)])
        if not rest:
            return ""
        if rest[0] == "[":
            self._in_list = True
            self._raw.append("[")
            self._scan(CallScanner(self._names))
            return rest[1:]
        if rest[0] == "{":
            self._scan(CallScanner(self._names))
        else:
            self._state = self._in_header
        return rest

    def _in_header(self, text: str) -> str:
        """Take a name, and what else stands before the arguments."""
        for place, character in enumerate(text):
            self._header += character
            if self._header.endswith(ARGS):
                found = _HEADER.fullmatch(self._header)
                return self._named(found[1] if found else "", text[place + 1 :])
            if _NO_HEADER.match(character) or len(self._header) == MAX_HEADER_CHARS:
                return self._named("", text[place + 1 :])
        return ""

    def _named(self, name: str, rest: str) -> str:
        self._raw.append(self._header)
        if name in self._names:
            self._scan(CallScanner(self._names, name))
        else:
            self._give_back()
        return rest

    def _after_call(self, text: str) -> str:
        text = text.lstrip(SPACES)
        if not text:
            return ""
        if self._in_list and text[0] == ",":
            self._is_certain = True
            self._scan(CallScanner(self._names))
            return text[1:]
        self._go_on_as_text(drops_leading=True)
        return text[1:] if self._in_list and text[0] == "]" else text

    def flush(self, *, is_cut: bool) -> Sequence[TurnEvent]:
        """Return the rest, once the text is at its end; is_cut: by length, not by the model."""
        if self._state == self._in_header:
            self._raw.append(self._header)
        return super().flush(is_cut=is_cut)
