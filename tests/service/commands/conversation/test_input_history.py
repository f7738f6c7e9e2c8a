"""What was typed is kept: for its owner alone, and not without bound."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from service.commands.conversation import input_history
from service.commands.conversation.input_history import (
    MAX_CHARACTERS,
    MAX_LINES,
    add_to_history,
    history_file,
    read_history,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "tetrad" / "chat_history"


def test_it_lies_in_the_users_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    in_home = tmp_path / ".local/state/tetrad/chat_history"
    assert history_file({}) == history_file({"XDG_STATE_HOME": "relative"}) == in_home
    assert history_file({"XDG_STATE_HOME": "/state"}) == Path("/state/tetrad/chat_history")


def test_lines_come_back_in_order_whatever_they_hold(path):
    add_to_history(path, ["one", "zwei\nlines \\ of a pasted text", "三😀"])
    add_to_history(path, [])
    add_to_history(path, ["four"])
    assert read_history(path) == ["one", "zwei\nlines \\ of a pasted text", "三😀", "four"]


def test_nobody_else_can_read_it(path):
    add_to_history(path, ["secret"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    add_to_history(path, ["more"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_oldest_lines_are_dropped(path):
    add_to_history(path, [str(number) for number in range(MAX_LINES + 5)])
    assert read_history(path) == [str(number) for number in range(5, MAX_LINES + 5)]


@pytest.mark.parametrize("character", ["x", "😀", "\x01"])
def test_the_largest_history_can_be_read_again(path, character):
    add_to_history(path, ["old", *([character * 998] * 100)])
    assert len(read_history(path)) == MAX_CHARACTERS // 1000
    add_to_history(path, [character * (MAX_CHARACTERS + 1)])
    assert read_history(path) == []


def test_a_damaged_or_missing_history_is_an_empty_one(path):
    assert read_history(path) == []
    path.parent.mkdir(parents=True)
    path.write_bytes(b'"good"\n{broken\n5\n\n' + b"[" * 50_000 + b"\n")
    assert read_history(path) == ["good"]
    path.write_bytes(b"\xff")
    assert read_history(path) == []


def test_a_history_that_cannot_be_written_stays_as_it_was(path, monkeypatch):
    add_to_history(path, ["one"])

    def refuse(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(input_history.os, "replace", refuse)
    with pytest.raises(PermissionError):
        add_to_history(path, ["two"])
    assert read_history(path) == ["one"]
    assert [file.name for file in path.parent.iterdir()] == ["chat_history"]
