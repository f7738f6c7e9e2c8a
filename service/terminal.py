"""Shows in a terminal how far something long has come: one bar on the line below the log.

Lines of the log, this process's or an engine's, come from several processes, so nothing here waits
for them: a bar leaves the cursor at the start of its line, and each line of the log begins by
erasing it (`ERASE_LINE`). Where standard error is no terminal there is no bar, and whoever has
something to tell writes lines.
"""

from __future__ import annotations

import io
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

ERASE_LINE = "\r\x1b[K"
_BAR_WIDTH = 30
_PERCENT_WIDTH = 4


class ProgressLine:
    """One bar with words beside it; of several things that go on, the last one to move."""

    def __init__(self, stream: TextIO, draw: Callable[[str], object] | None = None) -> None:
        """draw: has a text written to the stream without waiting; None writes it at once."""
        self._draw_text = draw or partial(_write_at_once, stream)
        self._console = Console(file=_LooksLike(stream))
        self._lock = threading.Lock()
        self._shown: dict[str, tuple[str, float | None]] = {}  # name → words, percent

    def show(self, name: str, words: str, percent: float | None) -> None:
        """Draw what is known of one thing; percent: None where nobody knows how much is left."""
        with self._lock:
            self._shown.pop(name, None)
            self._shown[name] = words, percent  # last in the order
            self._draw()

    def end(self, name: str) -> None:
        """Let go of one thing, and of the line with the last."""
        with self._lock:
            if self._shown.pop(name, None) is not None:
                self._draw()

    def _draw(self) -> None:
        name, (words, percent) = next(reversed(self._shown.items()), ("", ("", None)))
        drawn = f"{self._rendered(name, words, percent)}\r" if name else ""
        self._draw_text(f"{ERASE_LINE}{drawn}")

    def _rendered(self, name: str, words: str, percent: float | None) -> str:
        """Render one line that is shorter than the terminal is wide, so that it never wraps."""
        room = self._console.width - 1  # a full line would move the cursor on to the next
        bar_width = min(_BAR_WIDTH, max(1, room // 3))
        told = Text(f"{name}: {words}")
        told.truncate(max(1, room - bar_width - _PERCENT_WIDTH - 2), overflow="ellipsis")
        line = Table.grid(padding=(0, 1))
        line.add_column(width=bar_width)
        line.add_column(width=_PERCENT_WIDTH)
        line.add_column(no_wrap=True)
        known = "" if percent is None else f"{min(100.0, percent):3.0f}%"
        bar = ProgressBar(total=100, completed=percent or 0.0, width=bar_width)
        line.add_row(bar, known, told)
        with self._console.capture() as captured:
            self._console.print(line, end="")
        return captured.get().split("\n", 1)[0].rstrip()


class _LooksLike(io.TextIOWrapper):
    """Is drawn for as the stream would be: even what is only captured flushes a console's file."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(io.BytesIO(), encoding=stream.encoding or "utf-8")
        self._is_terminal = stream.isatty()

    def isatty(self) -> bool:
        return self._is_terminal


def _write_at_once(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def is_drawn_on() -> bool:
    """Tell whether standard error is a terminal that can erase a line."""
    return sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal


_line: ProgressLine | None = None


def use_progress_line(*, wanted: bool, draw: Callable[[str], object] | None = None) -> bool:
    """Decide, with the form of the log, whether progress is drawn; return what was decided.

    draw: as `ProgressLine` has it: a terminal that somebody paused takes nothing, for hours.
    """
    global _line  # there is one standard error, as there is one log
    _line = ProgressLine(sys.stderr, draw) if wanted and is_drawn_on() else None
    return _line is not None


def progress_line() -> ProgressLine | None:
    """Return where progress is drawn; None where it is to be told in lines."""
    return _line
