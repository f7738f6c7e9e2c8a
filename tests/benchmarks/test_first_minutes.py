"""How the time to the first token is told apart, by the log of a server."""

from __future__ import annotations

import pytest

from benchmarks.first_minutes import PARTS, LogLine, read_line, split

LOG = [
    LogLine(1.0, "listening"),
    LogLine(1.2, "loading", "starting"),
    LogLine(4.0, "loading", "choosing the variant"),
    LogLine(4.5, "loading", "finding the files"),
    LogLine(5.0, "loading", "building the demo: reading it"),
    LogLine(6.0, "loading", "building the demo: rounding it"),
    LogLine(11.0, "loading", "finding the files"),
    LogLine(12.0, "loading", "checking the files"),
    LogLine(14.0, "loading", "self-test"),
    LogLine(15.0, "loaded"),
    LogLine(15.5, "loading", "self-test"),  # of the engine
    LogLine(17.0, "ready"),
    LogLine(17.5, "first token"),
]


def test_each_part_ends_where_the_next_begins():
    seconds = split(LOG)
    assert list(seconds.values()) == [1.0, 3.0, 1.0, 7.0, 2.0, 1.0, 2.0, 0.5]
    assert list(seconds) == [part for part, _ in PARTS]


def test_a_log_without_a_build_is_refused():
    """The cache was not empty, then."""
    with pytest.raises(ValueError, match="choice of the branch"):
        split([line for line in LOG if "building" not in str(line.phase)])


def test_lines_of_others_are_passed_over():
    assert read_line("Fatal Python error", 1.0) is None
    assert read_line('{"event": "loading", "phase": "self-test"}', 2.0) == LogLine(
        2.0, "loading", "self-test"
    )
