"""Reads what a person types: messages of one line or several, with arrow keys and history.

A line that ends in a backslash goes on with the next; lines between two lines of `\"\"\"` are one
message. A terminal that marks pastes (most do) gives a pasted text of several lines as one.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.commands.conversation.input_history import add_to_history, history_file, read_history
from service.commands.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT = "> "
FURTHER_PROMPT = "… "
FENCE = '"""'


class LineInput:
    """A terminal that somebody types into."""

    def read_message(self) -> str | None:
        """Return what was typed; None at its end (Ctrl-D). Raises KeyboardInterrupt (Ctrl-C)."""
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
                break
            lines.append(further)
        return "\n".join(lines)

    def _read_to_fence(self) -> str:
        lines: list[str] = []
        while (line := _read_line(FURTHER_PROMPT)) is not None and line.strip() != FENCE:
            lines.append(line)
        return "\n".join(lines)


@contextmanager
def line_input(*, keeps_history: bool) -> Iterator[LineInput]:
    """Let lines be edited while the block runs, and keep those of this session for the next."""
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
    num_known = readline.get_current_history_length()
    try:
        yield LineInput()
    finally:
        last = readline.get_current_history_length()
        items = [readline.get_history_item(index) for index in range(num_known + 1, last + 1)]
        try:
            add_to_history(path, [item for item in items if item])
        except OSError as error:
            sys.stderr.write(f"tetrad: what was typed is not kept: {printable(str(error))}\n")


def _read_line(prompt: str) -> str | None:
    try:
        line = input(prompt)
    except EOFError:
        return None
    # Bytes that were no UTF-8 come as halves of surrogates, which no server takes.
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
