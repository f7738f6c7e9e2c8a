"""What a terminal, and a pipe, get of an answer."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from service.client.answer import AnswerPiece
from service.commands.conversation import answer_view
from service.commands.conversation.answer_view import MarkdownView, PipeView, PlainView, choose_view

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS = re.compile(r"\x1b\[[0-9;]*m")  # styles
REDRAWN = re.compile(r"\x1b\[(2K|1A)|\r")  # how a block is drawn again


def terminal(height: int = 40) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=60, height=height, color_system="standard",
        highlight=False, markup=False, emoji=False, _environ={"TERM": "xterm"},
    )  # fmt: skip


def written(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def shown(console: Console) -> str:
    """What is on the screen in the end, without styles: every line that was not erased again."""
    lines: list[str] = [""]
    row = 0
    for part in re.split(r"(\x1b\[2K|\x1b\[1A|\r|\n)", OURS.sub("", written(console))):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[1A":
            row -= 1
            assert row >= 0
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b") and part != "\r":
            lines[row] += part
    return "\n".join(line.rstrip() for line in lines)


def render(texts: Sequence[str], height: int = 40) -> Console:
    console = terminal(height)
    view = MarkdownView(console)
    for text in texts:
        view.show(AnswerPiece(text=text))
    view.end()
    return console


@pytest.fixture(autouse=True)
def drawn_each_time(monkeypatch):
    monkeypatch.setattr(answer_view, "REDRAW_EVERY_S", 0)
    monkeypatch.setattr(answer_view, "REDRAW_SHARE", 0)


HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m &#x1b;[2J &#x202e; \u202e[red]not mark-up[/red] :smile:"


@pytest.mark.parametrize("view", [MarkdownView, PlainView])
def test_a_terminal_gets_no_control_character_of_the_models(view):
    console = terminal()
    shows = view(console)
    shows.show(AnswerPiece(reasoning=HOSTILE))
    shows.show(AnswerPiece(text=HOSTILE))
    shows.end()
    left = REDRAWN.sub("", OURS.sub("", written(console)))
    assert not set(left) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert "␛[2J" in left
    assert "[red]not mark-up[/red] :smile:" in left


def test_an_address_is_shown_where_a_link_leads_and_is_none_for_the_terminal():
    console = render(["[your bank](http://evil.example/)"])
    assert "\x1b]8" not in written(console)
    assert "http://evil.example/" in shown(console)


TEXT = """# Title

Some *words* of a paragraph.

```python
for x in y:

    pass
```
- one
- two
"""


def test_markdown_is_rendered_and_each_block_once():
    screen = shown(render(list(TEXT)))
    assert "**" not in screen
    for words in ("Title", "Some words of a paragraph.", "for x in y:", "• one", "• two"):
        assert screen.count(words) == 1, screen
    assert "```" not in screen


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, len(TEXT)), max_size=8))
def test_the_screen_is_the_same_however_an_answer_comes(cuts):
    bounds = [0, *sorted(cuts), len(TEXT)]
    pieces = [TEXT[a:b] for a, b in pairwise(bounds)]
    assert shown(render(pieces)) == shown(render([TEXT]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet="ab \n\t#*_-+>`~[]()!|<&;\\1.x\x1b\u202e", max_size=12)))
def test_any_text_is_rendered_harmless(pieces):
    left = REDRAWN.sub("", OURS.sub("", written(render(pieces))))
    assert not set(left) & {"\x1b", "\u202e"}


@pytest.mark.parametrize(
    "repeated", ["> ", "- ", "[", "*a ", "_", "`", "![](", "<a ", "|a|\n|-|\n"]
)
def test_what_a_model_repeats_without_end_is_rendered(repeated):
    render([repeated * 1000] * 3)


def test_a_block_higher_than_the_terminal_is_erased_as_far_as_it_can_be():
    """What has left the screen cannot be erased; of a high block only the end is drawn anew."""
    lines = [f"line {number:02}\n" for number in range(60)]
    console = render(["```\n", *lines, "```\n"], height=10)
    upward = re.findall(r"(?:\x1b\[1A\x1b\[2K)+", written(console))
    assert max(len(run) // len("\x1b[1A\x1b[2K") for run in upward) == 9
    screen = shown(console)
    assert [screen.count(line.strip()) for line in lines] == [1] * 60


def test_each_drawing_is_one_write(monkeypatch):
    console = terminal()
    writes: list[str] = []
    monkeypatch.setattr(console.file, "write", writes.append)
    view = MarkdownView(console)
    for piece in ("a", "b\n\n", "c"):
        view.show(AnswerPiece(text=piece))
    assert len(writes) == 3


def test_finished_blocks_are_drawn_once():
    console = render(list("first paragraph\n\nsecond paragraph, which is drawn while it comes"))
    after = written(console).partition("second")[2]
    assert "first" not in after


def test_lines_that_stay_are_not_drawn_again():
    words = [f"word{number} " for number in range(60)]
    console = render(words)
    drawn = written(console)
    assert all(drawn.count(word) < 20 for word in words)  # those of its own line
    assert "word59" in shown(console)


def test_thoughts_are_dim_and_apart_from_the_answer():
    for view_of in (PlainView, MarkdownView):
        console = terminal()
        view = view_of(console)
        for piece in (AnswerPiece(reasoning="let me "), AnswerPiece(reasoning="see")):
            view.show(piece)
        view.show(AnswerPiece(text="42"))
        view.end()
        assert "\x1b[2mlet me \x1b[0m\x1b[2msee\x1b[0m\n" in written(console)
        assert shown(console).split("\n")[:2] == ["let me see", "42"]


def test_plain_text_keeps_its_tabs_and_ends_with_a_line():
    console = terminal()
    view = PlainView(console)
    view.show(AnswerPiece(text="**a**\n\tb"))
    assert written(console) == "**a**\n\tb"
    view.end()
    assert written(console) == "**a**\n\tb\n"


@pytest.mark.parametrize(("ends_line", "end"), [(True, "\n"), (False, "")])
def test_a_pipe_gets_the_answers_own_text_without_thoughts(capsys, ends_line, end):
    view = PipeView(ends_line=ends_line)
    for piece in (AnswerPiece(reasoning="hm"), AnswerPiece(text="\x1b[1mä\r\n"), AnswerPiece("b")):
        view.show(piece)
    view.end()
    assert capsys.readouterr().out == "\x1b[1mä\r\nb" + end


def test_halves_of_characters_do_not_break_a_pipe(capsys):
    PipeView(ends_line=False).show(AnswerPiece(text="\ud83d!"))
    assert capsys.readouterr().out == "?!"


def test_markdown_is_for_terminals_that_can_draw(monkeypatch):
    def chosen(markdown: bool | None, *, is_terminal: bool = True) -> type:
        return type(choose_view(markdown=markdown, is_terminal=is_terminal, ends_line=True))

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any output for a terminal
    assert chosen(None) is chosen(True) is MarkdownView
    assert chosen(False) is PlainView
    assert chosen(True, is_terminal=False) is PipeView
    monkeypatch.setenv("TERM", "dumb")
    assert chosen(None) is PlainView
