"""Messages of one line and of several."""

from __future__ import annotations

import pytest

from service.commands.conversation import line_input
from service.commands.conversation.input_history import read_history
from service.commands.conversation.line_input import KeptLines, LineInput


@pytest.fixture
def types(monkeypatch):
    """Type lines; then the input ends."""

    def run(*lines: str) -> list[str | None]:
        waiting = list(lines)

        def read(_: str) -> str:
            if not waiting:
                raise EOFError
            return waiting.pop(0)

        monkeypatch.setattr(line_input, "input", read, raising=False)
        messages: list[str | None] = []
        while not messages or messages[-1] is not None:
            messages.append(LineInput().read_message())
        return messages

    return run


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (["one", "two"], ["one", "two"]),
        (["one\\", "two\\", "three", "four"], ["one\ntwo\nthree", "four"]),
        (['"""', "one\\", "", "/two", '  """ ', "three"], ["one\\\n\n/two", "three"]),
        (["pasted\nlines"], ["pasted\nlines"]),
        (["one\\"], [""]),
        (['"""', "one"], [""]),
        ([""], [""]),
        (["half \udcff of a character"], ["half � of a character"]),
    ],
)
def test_lines_become_messages(types, lines, messages):
    assert types(*lines) == [*messages, None]


@pytest.mark.parametrize("lines", [["one\\"], ['"""'], ['"""', "one", ""]])
def test_a_message_that_was_never_finished_is_not_sent_and_that_is_told(types, lines, capsys):
    assert types(*lines) == ["", None]
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "\n", "tetrad: the message was not finished, and is not sent\n"
    )  # fmt: skip


def test_lines_are_kept_as_they_come_and_each_once(tmp_path):
    path = tmp_path / "chat_history"
    typed = ["of an earlier session"]
    kept = KeptLines(path, count=lambda: len(typed), line_at=lambda index: typed[index - 1])
    kept.keep()
    assert not path.exists()
    typed += ["one", "two"]
    kept.keep()
    kept.keep()
    typed.append("three")
    kept.keep()
    assert read_history(path) == ["one", "two", "three"]


def test_lines_are_kept_before_they_are_answered(monkeypatch):
    waiting, kept = ["one", '"""', "two", '"""'], []
    monkeypatch.setattr(line_input, "input", lambda _: waiting.pop(0), raising=False)
    lines = LineInput(lambda: kept.append(len(waiting)))
    assert [lines.read_message(), lines.read_message()] == ["one", "two"]
    assert kept == [3, 0]
