"""The bar below the log: drawn in a terminal only, and never through a line of the log."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import subprocess
import sys

import pytest

from service.terminal import ERASE_LINE, ProgressLine, progress_line, use_progress_line

PROGRAM = """
import sys, structlog
from engine.transport.wire import Progress
from service.logs import set_up_logs
from service.settings import WorkerSettings
from service.variants.loading_progress import LoadingProgress

set_up_logs(WorkerSettings(log_format=sys.argv[1]))
log = structlog.get_logger("test")
progress = LoadingProgress("demo")
progress.note(Progress("rounding", 25.0))
log.info("beside")
progress.note(Progress("rounding", 75.0))
progress.clear()
log.info("done")
"""

# What an event loop does while a variant loads; it comes to its end whatever the terminal does.
PAUSED = """
import sys
from engine.transport.wire import Progress
from service.logs import set_up_logs
from service.observation.line_writer import LineWriter
from service.settings import WorkerSettings
from service.variants.loading_progress import LoadingProgress

writer = LineWriter(sys.stderr)
set_up_logs(WorkerSettings(log_format="console"), writer=writer)
progress = LoadingProgress("demo")
for number in range(1000):
    progress.note(Progress("rounding", number / 10))
print("through", flush=True)
sys.stdin.read()
writer.flush(5)
"""


def screen_of(text: str) -> list[str]:
    """Return the lines that a terminal shows, which knows carriage returns and erasing to the end.

    Colours are left out.
    """
    lines, column, at = [""], 0, 0
    while at < len(text):
        char = text[at]
        if text.startswith("\x1b[", at):
            end = at + 2
            while not text[end].isalpha():
                end += 1
            if text[end] == "K":
                lines[-1] = lines[-1][:column]
            at = end + 1
            continue
        if char == "\n":
            lines.append("")
            column = 0
        elif char == "\r":
            column = 0
        else:
            lines[-1] = f"{lines[-1][:column]}{char}{lines[-1][column + 1 :]}"
            column += 1
        at += 1
    return lines


def in_terminal(log_format: str) -> str:
    """Run the program on a pseudo-terminal; return all that it wrote there."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, log_format], stderr=slave, env=environment
    ) as process:
        os.close(slave)
        written = b""
        try:
            while piece := os.read(master, 65536):
                written += piece
        except OSError:  # the terminal's other end is closed
            pass
        os.close(master)
    assert process.returncode == 0
    return written.decode()


def test_a_terminal_shows_a_bar_that_leaves_no_trace_among_the_lines():
    written = in_terminal("console")
    assert "25%" in written
    assert "75%" in written
    assert "demo: rounding" in written
    lines = screen_of(written)
    assert ["beside" in line or "done" in line for line in lines] == [True, True, False]
    assert lines[-1] == ""
    assert not any("━" in line for line in lines)


@pytest.mark.slow
def test_a_terminal_that_was_paused_holds_nobody_up_and_shows_the_newest_afterwards():
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", PAUSED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=slave,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(slave)
        assert process.stdin is not None
        assert process.stdout is not None
        is_through, _, _ = select.select([process.stdout], [], [], 20)
        process.stdin.close()
        written = b""
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while piece := os.read(master, 65536):
                written += piece
        os.close(master)
    assert is_through
    assert "100% demo: rounding" in screen_of(written.decode())[-1]
    assert written.count(b"rounding") < 500


def test_lines_of_json_have_no_bar_among_them_in_a_terminal_either():
    written = in_terminal("json")
    assert "\x1b" not in written
    assert '"percent": 25' in written


def test_a_pipe_gets_the_lines():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "console"], capture_output=True, text=True, check=True
    )
    assert "\r" not in done.stderr
    assert "percent=25" in done.stderr


class TestLine:
    def test_a_line_is_never_wider_than_the_terminal(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "60")
        stream = io.StringIO()
        ProgressLine(stream).show("demo", "rounding " * 30, 10.0)
        (line,) = screen_of(stream.getvalue())
        assert len(line) < 60
        assert " 10% demo: rounding" in line
        assert line.endswith("…")

    def test_of_several_the_last_to_move_is_shown_and_the_others_come_back(self):
        stream = io.StringIO()
        line = ProgressLine(stream)
        line.show("first", "loading", 10.0)
        line.show("second", "loading", None)
        assert "second: loading" in screen_of(stream.getvalue())[0]
        line.end("second")
        assert "first: loading" in screen_of(stream.getvalue())[0]
        line.end("first")
        assert screen_of(stream.getvalue()) == [""]
        line.end("first")
        assert stream.getvalue().endswith(ERASE_LINE)

    @pytest.mark.parametrize(("is_terminal", "name"), [(False, "xterm"), (True, "dumb")])
    def test_where_no_line_can_be_erased_there_is_none(self, monkeypatch, is_terminal, name):
        monkeypatch.setenv("TERM", name)
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
        assert not use_progress_line(wanted=True)
        assert progress_line() is None
