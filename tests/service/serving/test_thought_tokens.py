"""Which tokens of an answer are thoughts."""

from __future__ import annotations

import pytest

from service.serving.thought_tokens import ThoughtMarks, ThoughtTokens

OPENING, CLOSING, BLANK = 7, 8, 9


@pytest.mark.parametrize(
    ("token_ids", "is_open", "num_tokens"),
    [
        ([OPENING, 1, 2, CLOSING, 3], False, 2),
        ([BLANK, BLANK, OPENING, 1, BLANK, CLOSING, 3], False, 2),
        ([1, 2, CLOSING, 3], True, 2),
        ([1, 2], True, 2),  # cut off within them
        ([OPENING, CLOSING, 3], False, 0),
        ([1, OPENING, 2, CLOSING], False, 0),  # an answer that speaks of them
        ([OPENING, 1, CLOSING, OPENING, 2, CLOSING], False, 1),
        ([], False, 0),
    ],
)
def test_what_stands_between_the_marks_at_the_beginning_counts(token_ids, is_open, num_tokens):
    marks = ThoughtMarks(OPENING, CLOSING, is_open)
    thoughts = ThoughtTokens(marks, lambda token_id: token_id == BLANK)
    for token_id in token_ids:
        thoughts.push(token_id)
    assert thoughts.num_tokens == num_tokens


def test_once_thoughts_are_over_no_more_can_come():
    thoughts = ThoughtTokens(ThoughtMarks(OPENING, CLOSING, is_open=False), lambda _: False)
    assert not thoughts.is_over
    thoughts.push(OPENING)
    thoughts.push(1)
    assert not thoughts.is_over
    thoughts.push(CLOSING)
    assert thoughts.is_over
