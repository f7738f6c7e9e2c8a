"""Events are the same however their bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.client.errors import BrokenAnswerError
from service.client.event_reader import MAX_EVENT_BYTES, EventReader

STREAM = (
    b": keep-alive\ndata: one\n\nid: 7\nevent: x\ndata:two\n\n: comment\n\n"
    b"data: three\ndata: lines\r\n\r\ndata: \xe2\x80\xa8 is no end of a line\n\ndata: last"
)
EVENTS = ["one", "two", "three\nlines", "\u2028 is no end of a line", "last"]


def read(pieces: list[bytes]) -> list[str]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.push(piece)] + reader.flush()


def test_data_is_read_and_nothing_else():
    assert read([STREAM]) == EVENTS
    assert read([bytes([byte]) for byte in STREAM]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM))))
def test_it_does_not_matter_how_a_stream_is_cut(cuts):
    bounds = [0, *sorted(cuts), len(STREAM)]
    assert read([STREAM[a:b] for a, b in pairwise(bounds)]) == EVENTS


def test_an_event_is_given_when_it_ends_and_not_before():
    reader = EventReader()
    assert reader.push(b"data: a\n") == []
    assert reader.push(b"\nda") == ["a"]


def test_bytes_that_are_no_text_are_shown_as_such():
    assert read([b"data: \xff\n\n"]) == ["\ufffd"]


@pytest.mark.parametrize("endless", [b"x" * 1_000_000, b"data: " + b"x" * 999_990 + b"\n"])
def test_an_event_without_end_is_given_up(endless):
    reader = EventReader()
    for _ in range(MAX_EVENT_BYTES // 1_000_000):
        reader.push(endless)
    with pytest.raises(BrokenAnswerError, match="no end of an event"):
        reader.push(endless)
