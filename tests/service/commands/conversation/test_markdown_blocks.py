"""Markdown is cut between blocks, and nothing that follows changes a finished one."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from service.commands.conversation.markdown_blocks import MarkdownBlocks

DOCUMENT = """# Title

A paragraph
of two lines.

- one

- two

```python
x = 1

y = 2
```
After.

| a | b |
|---|---|
| 1 | 2 |

End"""
BLOCKS = [
    "# Title\n",
    "\nA paragraph\nof two lines.\n\n",
    "- one\n\n- two\n\n",
    "```python\nx = 1\n\ny = 2\n```\n",
    "After.\n\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\nEnd",
]


def blocks_of(pieces: list[str]) -> list[str]:
    blocks = MarkdownBlocks()
    return [block for piece in pieces for block in blocks.push(piece)] + [blocks.flush()]


def test_blocks_are_finished_as_soon_as_nothing_can_change_them():
    assert blocks_of(list(DOCUMENT)) == BLOCKS


def test_an_open_fence_holds_everything_back():
    blocks = MarkdownBlocks()
    assert blocks.push("```\ncode\n\n# no title\n\nno paragraph\n\n") == []
    assert blocks.push("```\n") == ["```\ncode\n\n# no title\n\nno paragraph\n\n```\n"]


def test_a_title_under_a_line_is_no_paragraph():
    assert blocks_of(list("Title\n=====\n\ntext")) == ["Title\n=====\n", "\ntext"]


def test_a_quotation_goes_on_behind_a_line_of_its_mark_alone():
    assert blocks_of(list(">\n> quoted\n>\n> more\n\ntext")) == [
        ">\n> quoted\n>\n> more\n\n",
        "text",
    ]


LINES = st.sampled_from(
    [
        "", "", "text", "# title", "#", "===", "---", "- item", "-", "1. first", "2. second",
        "  more of it", "    code", "```", "```python", "~~~", "> quoted", ">", "| a | b |",
        "|---|---|", "<div>", "</div>", "***", "* star", "\\",
    ]
)  # fmt: skip


def kinds(markdown: str) -> list[str]:
    parser = MarkdownIt().enable("strikethrough").enable("table")
    return [token.type for token in parser.parse(markdown)]


@example([">", "> quoted"], [])
@given(st.lists(LINES, max_size=14), st.lists(st.integers(0, 100)))
def test_blocks_are_those_of_the_whole_text_however_it_comes(lines, cuts):
    text = "\n".join(lines)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    blocks = blocks_of(pieces)
    assert "".join(blocks) == text
    assert [kind for block in blocks for kind in kinds(block)] == kinds(text)
    assert blocks_of([*text]) == blocks_of([f"{line}\n" for line in lines[:-1]] + lines[-1:])
