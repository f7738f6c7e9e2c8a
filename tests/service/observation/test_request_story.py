"""What a request's record says at its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.outputs import FinishReason
from engine.statistics import TokenTimes
from service.observation.request_record import RequestRecord
from service.observation.request_story import parts_of, tell

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def generation(*choices: tuple[TokenTimes, FinishReason | None], generated: int = 10) -> Any:
    return SimpleNamespace(
        usage=SimpleNamespace(prompt_tokens=7, cached_tokens=3, completion_tokens=generated),
        times=[times for times, _ in choices],
        finish_reasons=[reason for _, reason in choices],
    )


def record(**fields: Any) -> RequestRecord:
    return RequestRecord(started=100.0, status=200, **fields)


def test_a_request_tells_its_tokens_and_where_each_part_of_its_time_went():
    request = record(
        body_read_at=101.0,
        acquire_began_at=101.5,
        acquired_at=104.0,
        send_wait_s=0.5,
        generation=generation((TokenTimes(105.0, 2.0, 110.0, 114.5, 0.75), STOP)),
    )
    story = tell(request, 115.0)
    assert (story.status, story.outcome, story.total_s) == (200, "stop", 15.0)
    tokens = story.tokens
    assert (tokens.prompt_tokens, tokens.cached_tokens, tokens.generated_tokens) == (7, 3, 10)
    assert (tokens.queue_s, tokens.first_token_s, tokens.decode_s) == (2.0, 5.0, 4.5)
    assert tokens.tokens_per_s == 2.0  # nine of them in 4.5 s
    assert parts_of(request, story) == {
        "body_s": 1.0,
        "wait_model_s": 2.5,
        "render_s": 1.5,
        "queue_s": 2.0,
        "prefill_s": 3.0,
        "decode_s": 4.5,
        "longest_gap_s": 0.75,
        "send_wait_s": 0.5,
    }


def test_of_several_choices_the_one_that_waited_longest_counts():
    choices = generation(
        (TokenTimes(100.0, 0.0, 101.0, 105.0, 0.5), LENGTH),
        (TokenTimes(100.0, 5.0, 106.0, 109.0, 0.25), STOP),
        (TokenTimes(100.0, 0.0, 101.0, 105.0, 1.5), LENGTH),
        generated=11,
    )
    story = tell(record(generation=choices), 109.0)
    assert story.outcome == "length,stop"
    tokens = story.tokens
    assert tokens.choice_ends == ("length", "stop", "length")
    assert (tokens.queue_s, tokens.first_token_s, tokens.decode_s) == (5.0, 6.0, 3.0)
    assert tokens.longest_gap_s == 1.5
    assert tokens.tokens_per_s == 1.0  # eight of them in 8 s


@pytest.mark.parametrize(
    ("failure", "end"),
    [
        ("client_gone", "abort"),
        ("cut_off", "abort"),
        ("stalled_reader", "abort"),
        ("engine_dead", "error"),
    ],
)
def test_a_choice_without_an_end_of_its_own_was_aborted_or_failed(failure, end):
    times = (TokenTimes(100.0, 1.0, 102.0, 103.0), None), (TokenTimes(100.0), STOP)
    story = tell(record(generation=generation(*times), failure=failure), 104.0)
    assert story.outcome == failure
    assert story.tokens.choice_ends == (end, "stop")


def test_who_leaves_the_queue_without_a_token_has_waited_there_all_the_time():
    request = record(generation=generation((TokenTimes(101.0), None), generated=0))
    request.status, request.failure = None, "client_gone"
    story = tell(request, 131.0)
    assert story.status == 499
    assert story.is_slow(10)
    tokens = story.tokens
    assert (tokens.queue_s, tokens.first_token_s, tokens.tokens_per_s) == (None, None, None)
    parts = parts_of(request, story)
    assert (parts["queue_s"], parts["prefill_s"], parts["decode_s"]) == (30.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("times", "ended", "is_slow"),
    [
        (TokenTimes(100.0, 0.0, 101.0, 700.0, 0.5), 700.1, False),  # long, at its own pace
        (TokenTimes(100.0, 11.0, 111.5, 112.0, 0.1), 112.0, True),  # waited
        (TokenTimes(100.0, 0.0, 101.0, 120.0, 11.0), 120.0, True),  # paused in its midst
        (TokenTimes(100.0, 0.0, 101.0, 120.0, 0.1), 135.0, True),  # read slowly
    ],
)
def test_slow_is_what_waits_and_not_what_is_long(times, ended, is_slow):
    story = tell(record(generation=generation((times, STOP))), ended)
    assert story.is_slow(10) is is_slow


def test_what_makes_no_text_is_slow_by_its_whole_time():
    assert tell(record(), 111.0).is_slow(10)
    assert not tell(record(), 109.0).is_slow(10)


@pytest.mark.parametrize(
    ("status", "failure", "outcome"),
    [
        (200, None, "ok"),
        (404, None, "not_found"),
        (405, None, "method_not_allowed"),
        (400, None, "http_400"),
        (429, "queue_full", "queue_full"),
        (None, "client_gone", "client_gone"),
    ],
)
def test_every_request_has_one_outcome(status, failure, outcome):
    request = record(failure=failure)
    request.status = status
    assert tell(request, 101.0).outcome == outcome
