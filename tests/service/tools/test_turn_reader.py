"""A turn of nothing but text is passed on as it is."""

from __future__ import annotations

from service.tools.turn_reader import PlainReader
from tests.service.tools.in_sum import in_sum, read


def test_text_is_passed_on_at_once() -> None:
    reader = PlainReader()
    assert in_sum(reader.push("<tool_call> ")) == [("text", "<tool_call> ")]
    assert not reader.push("")
    assert not reader.flush(is_cut=True)
    assert reader.num_calls == 0


def test_pieces_are_the_text_in_sum() -> None:
    assert in_sum(read(PlainReader(), [" a", "", "b "])) == [("text", " ab ")]
