"""Which tokens of an answer are thoughts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.serving.thought_tokens import ThoughtMarks, ThoughtTokens
from service.tools.reasoning_reader import ReasoningReader
from service.tools.turn_reader import PlainReader
from tests.service.tools.in_sum import in_sum, read

OPENING, CLOSING = "<think>", "</think>"


def counts(pieces: list[bytes], *, is_open: bool = False) -> list[int]:
    """The count after each token, and at the end; a token is one of the pieces."""
    marks = ThoughtMarks(OPENING, CLOSING, is_open)
    thoughts = ThoughtTokens(marks, pieces.__getitem__)
    found = []
    for token_id in range(len(pieces)):
        thoughts.push(token_id)
        found.append(thoughts.num_tokens)
    thoughts.flush()
    return [*found, thoughts.num_tokens]


@pytest.mark.parametrize(
    ("pieces", "is_open", "num_tokens"),
    [
        (["<think>", "a", "b", "</think>", "c"], False, 2),
        (["\n", " ", "<think>", "a", " ", "</think>", "c"], False, 2),
        (["a", "b", "</think>", "c"], True, 2),
        (["a", "b"], True, 2),  # cut off within them
        (["a", "</", "thi"], True, 3),
        (["<think>", "</think>", "c"], False, 0),
        (["a", "<think>", "b", "</think>"], False, 0),  # an answer that speaks of them
        (["<think>", "a", "</think>", "<think>", "b", "</think>"], False, 1),
        (["<", "thi", "nk", ">", "a", "b", "</", "think", ">", "c"], False, 2),
        (["<th", "ink>a", "b</", "think>c", "d"], False, 1),  # by where a token begins
        (["<think>", "a <", "/b", "</", "think>"], False, 2),
        (["<think>", "", "a", "", "</think>"], False, 2),  # half a character, or hidden
        (["<thin"], False, 0),
        ([], False, 0),
    ],
)
def test_what_begins_between_the_marks_at_the_beginning_counts(pieces, is_open, num_tokens):
    *told, last = counts([piece.encode() for piece in pieces], is_open=is_open)
    assert last == num_tokens
    assert told == sorted(told)


def test_what_may_be_of_the_mark_counts_once_it_is_none():
    assert counts([b"<think>", b"a", b"<", b"/", b"b", b"</", b"think>"])[:5] == [0, 1, 1, 1, 4]


@settings(deadline=None)
@given(
    parts=st.lists(
        st.sampled_from([OPENING, CLOSING, "<", "/think>", " ", "\n", "ab", "世"]), max_size=10
    ),
    places=st.sets(st.integers(0, 60), max_size=20),
    is_open=st.booleans(),
)
def test_as_many_tokens_count_as_begin_in_what_is_read_as_thoughts(parts, places, is_open):
    written = "".join(parts)
    cuts = sorted({0, len(written), *(place for place in places if place < len(written))})
    pieces = [written[a:b] for a, b in pairwise(cuts)]
    begin = 0 if is_open else len(written) - len(written.lstrip()) + len(OPENING)
    is_thought = is_open or written.lstrip().startswith(OPENING)
    end = written.find(CLOSING, begin) if CLOSING in written[begin:] else len(written)
    expected = sum(begin <= cut < end for cut in cuts[:-1]) if is_thought else 0
    assert counts([piece.encode() for piece in pieces], is_open=is_open)[-1] == expected
    reader = ReasoningReader(PlainReader(), (OPENING, CLOSING), is_open=is_open)
    read_as = "".join(text for kind, text in in_sum(read(reader, pieces)) if kind == "reasoning")
    assert read_as == (written[begin:end].strip() if is_thought else "")


def test_once_thoughts_are_over_no_more_can_come():
    thoughts = ThoughtTokens(
        ThoughtMarks(OPENING, CLOSING, is_open=False), [b"<think>", b"a", b"</think>"].__getitem__
    )
    for token_id in (0, 1):
        assert not thoughts.is_over
        thoughts.push(token_id)
    assert not thoughts.is_over
    thoughts.push(2)
    assert thoughts.is_over
    thoughts.push(1)
    assert thoughts.num_tokens == 1
