"""What was typed is kept: for its owner alone, and not without bound."""

from __future__ import annotations

import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from service.commands.conversation import input_history
from service.commands.conversation.input_history import (
    MAX_CHARACTERS,
    MAX_LINES,
    add_to_history,
    history_file,
    read_history,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Adds one line after another, and tells of each that is there.
ADDING = """
import sys
from pathlib import Path
from service.commands.conversation.input_history import add_to_history
path, name, most = sys.argv[1:]
for number in range(int(most)):
    add_to_history(Path(path), [f"{name} {number}"])
    print(number, flush=True)
"""


@contextmanager
def adding(path: Path, name: str, most: int) -> Iterator[subprocess.Popen[str]]:
    """Have another process add lines for as long as the block runs, then kill it."""
    arguments = [sys.executable, "-c", ADDING, str(path), name, str(most)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


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

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        add_to_history(path, ["two"])
    assert read_history(path) == ["one"]
    assert not [file for file in path.parent.iterdir() if file.name.endswith(".new")]


def test_sessions_at_once_lose_nothing_of_each_others(path):
    with adding(path, "one", 100) as one, adding(path, "two", 100) as two:
        assert [process.wait(60) for process in (one, two)] == [0, 0]
    lines = read_history(path)
    assert len(lines) == 200
    for name in ("one", "two"):
        assert [line for line in lines if line.startswith(name)] == [
            f"{name} {number}" for number in range(100)
        ]


def test_session_that_is_killed_at_any_moment_leaves_every_line_that_it_had_kept(path):
    kept = ["x" * 700] * 100  # so that writing takes a while
    add_to_history(path, kept)
    for run in range(8):
        with adding(path, f"run {run}", 10_000) as process:
            assert process.stdout is not None
            told = [process.stdout.readline() for _ in range(3 + run)]
            process.kill()
            told += process.stdout.readlines()
        lines = read_history(path)
        added = [f"run {run} {number}" for number in range(len(told) + 1)]
        # The last one may be there, as it was killed before it could tell of it.
        assert lines in ([*kept, *added[:-1]][-len(lines) :], [*kept, *added][-len(lines) :])
        assert len(lines) > 50
        kept = lines
    add_to_history(path, ["afterwards"])
    assert read_history(path)[-1] == "afterwards"
    assert not [file for file in path.parent.iterdir() if file.name.endswith(".new")]


def test_a_lock_that_another_holds_for_long_is_an_error(path, monkeypatch):
    add_to_history(path, ["one"])
    monkeypatch.setattr(input_history, "MAX_WAIT_S", 0)
    with FileLock(f"{path}.lock"), pytest.raises(OSError, match="lock"):
        add_to_history(path, ["two"])
    assert read_history(path) == ["one"]
