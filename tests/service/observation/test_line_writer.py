"""Nobody waits for whoever reads the log."""

from __future__ import annotations

import io
import threading
import time

from service.observation import line_writer
from service.observation.line_writer import LineWriter


class Stuck(io.StringIO):
    """Takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        self.go.wait()
        return super().write(text)


def test_lines_come_out_whole_and_in_their_order():
    out = io.StringIO()
    writer = LineWriter(out)
    for number in range(1000):
        writer.write(f"line {number}")
    writer.flush(5)
    assert out.getvalue().splitlines() == [f"line {number}" for number in range(1000)]


def test_a_stream_that_is_stuck_holds_nobody_up_and_what_has_no_room_is_counted():
    out = Stuck()
    writer = LineWriter(out, max_waiting=100)
    began = time.monotonic()
    for number in range(1000):
        writer.write(f"line {number}")
    writer.flush(0.01)
    assert time.monotonic() - began < 5
    assert 600 < writer.num_dropped <= 900  # what the thread holds in its hands is not waiting
    out.go.set()
    writer.flush(5)
    writer.write("the last")
    writer.flush(5)
    lines = out.getvalue().splitlines()
    assert lines[0] == "line 0"
    assert lines[-1] == "the last"
    assert len(lines) == 1001 - writer.num_dropped


def test_a_crowd_of_lines_is_written_together(monkeypatch):
    """Each waking of the thread takes the interpreter from who answers requests."""
    monkeypatch.setattr(line_writer, "_REST_S", 0.5)
    out = io.StringIO()
    writes = []
    monkeypatch.setattr(out, "write", writes.append)
    writer = LineWriter(out)
    writer.write("first")
    while not writes:
        time.sleep(0.001)
    for number in range(100):
        writer.write(f"line {number}")
    writer.flush(5)
    assert len(writes) == 2


def test_a_closed_stream_raises_nothing_and_its_lines_are_counted_as_lost():
    out = io.StringIO()
    out.close()
    writer = LineWriter(out)
    writer.write("lost")
    writer.flush(5)
    writer.write("lost, too")
    writer.draw("a bar")
    writer.flush(5)
    assert writer.num_dropped == 2


def test_of_what_is_drawn_while_the_stream_is_stuck_the_newest_comes_out_between_the_lines():
    out = Stuck()
    writer = LineWriter(out, max_waiting=100)
    writer.write("before")
    for percent in range(1000):
        writer.draw(f"{percent}\r")
    writer.write("after")
    assert writer.num_dropped == 0
    out.go.set()
    writer.flush(5)
    drawn = out.getvalue().removeprefix("before\n").removesuffix("after\n").split("\r")
    assert drawn[-2:] == ["999", ""]
    assert len(drawn) <= 3
    writer.draw("and again\r")
    writer.flush(5)
    assert out.getvalue().endswith("after\nand again\r")
