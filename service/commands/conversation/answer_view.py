"""Shows an answer as it comes: as it is in a pipe, made harmless or as markdown in a terminal.

Whatever a model writes, a terminal gets no control characters of it, and rich's own mark-up in it
means nothing. Thoughts before an answer (`reasoning`) are shown dim in a terminal, and left out of
pipes, which get the answer alone.
"""

from __future__ import annotations

import sys
import time
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.control import Control
from rich.segment import ControlType, Segment, Segments
from rich.text import Text

from service.commands.text import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import ConsoleOptions, RenderableType, RenderResult

    from service.client.answer import AnswerPiece

REDRAW_EVERY_S = 0.08
REDRAW_SHARE = 4  # drawing takes at most one part in so many of the time
DIM = "dim"


class AnswerView(Protocol):
    """Shows one answer."""

    def show(self, piece: AnswerPiece) -> None:
        """Show what has come."""

    def end(self) -> None:
        """Leave the cursor below the answer, whether or not it is whole."""

    def check(self) -> None:
        """Raise BrokenAnswerError where a whole answer is not what was asked for."""
        return  # any text is


class PipeView(AnswerView):
    """Writes the answer's text to standard output, exactly."""

    def __init__(self, *, ends_line: bool) -> None:
        """ends_line: whether a last line without an end gets one."""
        self._ends_line = ends_line
        self._is_at_line_start = True

    def show(self, piece: AnswerPiece) -> None:
        self._write(piece.text)

    def end(self) -> None:
        if self._ends_line and not self._is_at_line_start:
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            # Halves of surrogates, which JSON may hold, are no text that could be written.
            sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8"))
            sys.stdout.flush()
            self._is_at_line_start = text.endswith("\n")


class PlainView(AnswerView):
    """Writes text to a terminal as it comes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_at_line_start = True
        self._is_dim = False

    def show(self, piece: AnswerPiece) -> None:
        self._write(piece.reasoning, is_dim=True)
        self._write(piece.text, is_dim=False)

    def end(self) -> None:
        if not self._is_at_line_start:
            self._console.line()
            self._is_at_line_start = True

    def _write(self, text: str, *, is_dim: bool) -> None:
        if not text:
            return
        if is_dim != self._is_dim:
            self.end()
            self._is_dim = is_dim
        shown = harmless(text)
        styled = Segments([Segment(shown, self._console.get_style(DIM) if is_dim else None)])
        self._console.print(styled, end="", soft_wrap=True)
        self._is_at_line_start = shown.endswith("\n")


class MarkdownView(AnswerView):
    """Renders markdown in a terminal: finished blocks for good, the last one anew as it grows.

    Of a block that is higher than the terminal only its end is shown until it is finished. Not by
    rich's Live: whenever something is printed above, that draws once more what it showed before.
    """

    def __init__(self, console: Console) -> None:
        from service.commands.conversation.markdown_blocks import MarkdownBlocks

        self._console = console
        self._blocks = MarkdownBlocks()
        self._thoughts = PlainView(console)
        self._drawn: list[list[Segment]] = []  # lines of the unfinished block, above the cursor
        self._waiting = ""  # text that has come since the last drawing
        self._redraw_at = 0.0
        self._has_printed = False

    def show(self, piece: AnswerPiece) -> None:
        if piece.reasoning:
            self._leave_text()
            self._thoughts.show(piece)
        if piece.text:
            self._thoughts.end()
            self._waiting += harmless(piece.text)
            if time.monotonic() >= self._redraw_at:
                self._draw()

    def end(self) -> None:
        self._leave_text()
        self._thoughts.end()

    def _draw(self) -> None:
        started = time.monotonic()
        waiting, self._waiting = self._waiting, ""
        finished = self._blocks.push(waiting)
        with self._console:  # which writes all of it at once, so that nothing flickers
            if finished:
                self._erase()
            for block in finished:
                self._print(block)
            self._draw_unfinished()
        ended = time.monotonic()
        self._redraw_at = ended + max(REDRAW_EVERY_S, REDRAW_SHARE * (ended - started))

    def _leave_text(self) -> None:
        """Print what has come of the last block, and stop drawing it."""
        last = [*self._blocks.push(self._waiting), self._blocks.flush()]
        self._waiting = ""
        with self._console:
            self._erase()
            for block in last:
                self._print(block)

    def _erase(self, num_kept: int = 0) -> None:
        """Put the cursor where the drawing of the last block began, and nothing behind it.

        num_kept: how many of its lines stay, above the cursor.
        """
        if len(self._drawn) > num_kept:
            upward = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
            here = (ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))  # ^C may be there
            self._console.control(Control(*here, *upward * (len(self._drawn) - num_kept)))
        self._drawn = self._drawn[:num_kept]

    def _draw_unfinished(self) -> None:
        """Draw the last block, or as much of its end as the terminal has room for.

        Lines that are there already stay: of a growing text that is all but the last one.
        """
        lines: list[list[Segment]] = []
        if self._blocks.unfinished.strip():
            options = self._console.options.update(height=None)
            block = self._render(self._blocks.unfinished)
            lines = self._console.render_lines(block, options, pad=False)
            lines = lines[-max(1, self._console.height - 1) :]
        pairs = zip(self._drawn, lines, strict=False)
        num_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._erase(num_same)
        new = [part for line in lines[num_same:] for part in (*line, Segment.line())]
        self._console.print(Segments(new), end="", soft_wrap=True)
        self._drawn = lines

    def _print(self, block: str) -> None:
        if block.strip():
            self._console.print(self._render(block))
            self._has_printed = True

    def _render(self, block: str) -> RenderableType:
        from rich.markdown import Markdown

        # An address is shown beside its words: a link whose words say otherwise would deceive.
        rendered = Harmless(Markdown(block, hyperlinks=False))
        return Group(Text(""), rendered) if self._has_printed else rendered


class Harmless:
    """Renders something, and makes its text harmless, whatever the renderer made of it."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it."""
        yield from _harmless_segments(console, self._renderable, options)


def _harmless_segments(
    console: Console, renderable: RenderableType, options: ConsoleOptions
) -> Iterator[Segment]:
    for text, style, control in console.render(renderable, options):
        yield Segment(text if control else harmless(text), style, control)


def choose_view(*, markdown: bool | None, is_terminal: bool, ends_line: bool) -> AnswerView:
    """Choose how answers are shown; markdown: None where the user left it open.

    ends_line: whether a pipe's last line gets an end; a terminal's does.
    """
    if not is_terminal:
        return PipeView(ends_line=ends_line)
    console = Console(highlight=False, markup=False, emoji=False)
    if markdown is False or console.is_dumb_terminal:
        return PlainView(console)
    return MarkdownView(console)
