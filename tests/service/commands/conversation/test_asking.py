"""What is said of an answer besides its text."""

from __future__ import annotations

import pytest

from service.client.answer import AnswerPiece, TokenUsage
from service.commands.conversation import asking
from service.commands.conversation.asking import AnswerSoFar, tell_end
from tests.replaced import replace_within


@pytest.fixture
def clock(monkeypatch):
    times: list[float] = []
    replace_within(monkeypatch, asking, "time", monotonic=lambda: times.pop(0))
    return times


def answer_of(clock: list[float], times: list[float], *pieces: AnswerPiece) -> AnswerSoFar:
    clock += times
    answer = AnswerSoFar()
    for piece in pieces:
        answer.add(piece)
    return answer


COUNTED = AnswerPiece(usage=TokenUsage(5, 21))


def test_speed_counts_the_tokens_behind_the_first_and_the_time_they_took(clock):
    pieces = (AnswerPiece(reasoning="a"), AnswerPiece(text="b"), COUNTED)
    answer = answer_of(clock, [10.0, 10.5, 12.5], *pieces)
    assert answer.describe_usage() == (
        "5 tokens read, 21 written; the first after 0.50 s, then 10.0 a second"
    )
    assert answer.text == "b"


def test_no_speed_is_told_of_what_came_at_once(clock):
    at_once = answer_of(clock, [10.0, 10.5], AnswerPiece(text="a"), COUNTED)
    assert at_once.describe_usage() == "5 tokens read, 21 written; the first after 0.50 s"
    assert answer_of(clock, [10.0], COUNTED).describe_usage() == "5 tokens read, 21 written"


def test_a_server_that_counts_nothing_is_told(capsys):
    tell_end(AnswerSoFar(), usage=True)
    assert capsys.readouterr().err == "tetrad: the server did not tell how many tokens it took\n"


@pytest.mark.parametrize(("reason", "is_told"), [("length", True), ("stop", False), (None, False)])
def test_a_cut_answer_is_told_from_one_that_ended(capsys, reason, is_told):
    answer = AnswerSoFar()
    answer.add(AnswerPiece(text="a", finish_reason=reason))
    tell_end(answer, usage=False)
    assert ("--max-tokens" in capsys.readouterr().err) is is_told
