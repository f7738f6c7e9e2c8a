"""Reads what a person types: messages of one line or several, with arrow keys and history.

A line that ends in a backslash goes on with the next; lines between two lines of `\"\"\"` are one
message, and one whose end never comes is not sent. A terminal that marks pastes (most do) gives a
pasted text of several lines as one.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.commands.conversation.input_history import add_to_history, history_file, read_history
from service.commands.download_options import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROMPT = "> "
FURTHER_PROMPT = "… "
FENCE = '"""'


class LineInput:
    """A terminal that somebody types into."""

    def __init__(self, on_message: Callable[[], None] = lambda: None) -> None:
        """on_message: called when one was typed, before it is answered."""
        self._on_message = on_message

    def read_message(self) -> str | None:
        """Return what was typed; None at its end (Ctrl-D). Raises KeyboardInterrupt (Ctrl-C).

        Ctrl-D amid a message of several lines drops that message: what is returned is empty.
        """
        message = self._read_message()
        self._on_message()
        return message

    def _read_message(self) -> str | None:
        line = _read_line(PROMPT)
        if line is None:
            return None
        if line.strip() == FENCE:
            return self._read_to_fence()
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1].removesuffix("\\")
            further = _read_line(FURTHER_PROMPT)
            if further is None:
                return _drop_unfinished()
            lines.append(further)
        return "\n".join(lines)

    def _read_to_fence(self) -> str:
        lines: list[str] = []
        while (line := _read_line(FURTHER_PROMPT)) is not None:
            if line.strip() == FENCE:
                return "\n".join(lines)
            lines.append(line)
        return _drop_unfinished()


@contextmanager
def line_input(*, keeps_history: bool) -> Iterator[LineInput]:
    """Let lines be edited while the block runs, and keep each for the next sessions at once."""
    try:
        import readline
    except ImportError:  # a Python without it: lines are plain, and there is no history
        yield LineInput()
        return
    # Python turns it off. Without it each line of a paste would be a message.
    readline.parse_and_bind("set enable-bracketed-paste on")
    if not keeps_history:
        yield LineInput()
        return
    path = history_file(os.environ)
    for line in read_history(path):
        readline.add_history(line)
    kept = KeptLines(
        path,
        count=readline.get_current_history_length,
        line_at=readline.get_history_item,
    )
    try:
        yield LineInput(kept.keep)
    finally:
        kept.keep()  # what was typed of a message that was never finished


class KeptLines:
    """Keeps what a line editor has of this session, as it comes."""

    def __init__(
        self, path: Path, *, count: Callable[[], int], line_at: Callable[[int], str | None]
    ) -> None:
        """count: of the editor's lines; line_at: one of them, from 1 on."""
        self._path = path
        self._count = count
        self._line_at = line_at
        self._num_known = count()
        self._has_failed = False

    def keep(self) -> None:
        """Add what is new; where that fails, say so once and go on."""
        first, self._num_known = self._num_known + 1, self._count()
        lines = [self._line_at(index) for index in range(first, self._num_known + 1)]
        try:
            add_to_history(self._path, [line for line in lines if line])
        except OSError as error:
            if not self._has_failed:
                say(f"what was typed is not kept: {error}")
            self._has_failed = True


def _drop_unfinished() -> str:
    sys.stdout.write("\n")  # below the prompt, behind which nothing was typed
    sys.stdout.flush()
    say("the message was not finished, and is not sent")
    return ""


def _read_line(prompt: str) -> str | None:
    try:
        line = input(prompt)
    except EOFError:
        return None
    # Bytes that were no UTF-8 come as halves of surrogates, which no server takes.
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
