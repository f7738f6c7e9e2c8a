"""Cuts markdown that is still coming into blocks: what is finished can be printed for good.

A block (a paragraph, a list, a fenced piece of code) is finished once another has begun behind it;
nothing that follows changes it then. Lines that are not whole yet decide nothing.
"""

from __future__ import annotations

from itertools import pairwise

from markdown_it import MarkdownIt

_ANY_LINE = "x\n"
_ENDED_BY_ANY_LINE = ("fence", "heading_open", "hr", "paragraph_open", "blockquote_open")


class MarkdownBlocks:
    """Holds back the last block of a text."""

    def __init__(self) -> None:
        # The same rules as rich's, which renders the blocks.
        self._parser = MarkdownIt().enable("strikethrough").enable("table")
        self.unfinished = ""  # the last block, as far as it has come

    def push(self, text: str) -> list[str]:
        """Take more of the text; return the blocks that it finished."""
        self.unfinished += text
        if "\n" not in text:
            return []
        *whole, last = self.unfinished.split("\n")
        lines = [*(f"{line}\n" for line in whole), last]
        begins = self._begins("".join(lines[:-1]), len(whole))
        # Lines before the first block (empty ones, or definitions of links) belong to it.
        bounds = [0, *begins[1:]]
        finished = ["".join(lines[begin:end]) for begin, end in pairwise(bounds)]
        self.unfinished = "".join(lines[bounds[-1] :])
        return finished

    def _begins(self, text: str, num_lines: int) -> list[int]:
        """Find the lines at which blocks of a text of whole lines begin.

        The line behind the text is one of them where whatever follows would begin a block.
        """
        tokens = self._parser.parse(text + _ANY_LINE)
        tops = [
            (token.map[0], token.map[1], token.type)
            for token in tokens
            if not token.level and token.map
        ]
        begins = [begin for begin, _, _ in tops]
        if begins[-1] == num_lines and len(tops) > 1:
            _, end, kind = tops[-2]
            # A list goes on behind empty lines, with its next item; a quotation, behind none.
            may_go_on = kind not in _ENDED_BY_ANY_LINE or (
                kind == "blockquote_open" and end == num_lines
            )
            if may_go_on:
                begins.pop()
        return begins

    def flush(self) -> str:
        """Return the last block, once the text has ended."""
        last, self.unfinished = self.unfinished, ""
        return last
