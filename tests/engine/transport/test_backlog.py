"""What waits at an engine, as its client counts it."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest

from engine.errors import QueueFullError
from engine.transport.backlog import Backlog, Place, QueueLimits
from tests.engine.fake_engine import FakeEngine

IDLE = FakeEngine(max_num_seqs=2).statistics()
FULL = replace(IDLE, num_running=2, num_free_slots=0)


def test_sequences_that_find_a_free_slot_do_not_wait():
    backlog = Backlog(QueueLimits(max_queued_seqs=1))
    backlog.update(0, IDLE)
    for number in (1, 2, 3):  # two slots, and one may wait
        backlog.enter(number, [5])
    assert backlog.num_seqs == 1
    with pytest.raises(QueueFullError, match="1 sequences wait, at most 1 may"):
        backlog.enter(4, [5])


def test_what_was_sent_counts_until_the_engine_has_told_of_it():
    backlog = Backlog(QueueLimits(max_queued_seqs=3))
    backlog.update(0, FULL)
    backlog.enter(1, [5])
    backlog.enter(2, [5])
    backlog.update(1, replace(FULL, num_queued_seqs=1, num_queued_tokens=5))
    assert backlog.num_seqs == 2
    backlog.update(2, replace(FULL, num_queued_seqs=2, num_queued_tokens=10))
    assert backlog.num_seqs == 2
    backlog.update(2, FULL)  # both have begun
    assert backlog.num_seqs == 0


def test_a_request_waits_as_a_whole_or_not_at_all():
    """One of more sequences than may wait could never be let in otherwise."""
    backlog = Backlog(QueueLimits(max_queued_seqs=3))
    backlog.update(0, FULL)
    backlog.enter(1, [5] * 8)
    assert backlog.num_seqs == 8
    with pytest.raises(QueueFullError):
        backlog.enter(1, [5])
    assert backlog.num_seqs == 8


def test_tokens_that_wait_are_bounded_too():
    backlog = Backlog(QueueLimits(max_queued_tokens=100))
    backlog.update(0, FULL)
    backlog.enter(1, [500])  # nothing else waits
    with pytest.raises(QueueFullError, match="500 prompt tokens wait and 1 more would"):
        backlog.enter(1, [1])


def test_waits_are_bounded_by_the_speed_at_which_prompts_are_read():
    backlog = Backlog(QueueLimits(max_queue_wait_s=10))
    reading = replace(FULL, num_queued_seqs=3, prefill_tokens_per_s=100.0)
    backlog.update(0, replace(reading, num_queued_tokens=900))
    backlog.enter(1, [900])
    with pytest.raises(QueueFullError, match=r"takes 18\.0 s to read") as refused:
        backlog.enter(2, [1])
    assert refused.value.retry_after_s == 9


def test_a_place_counts_as_waiting_until_its_sequences_are_sent():
    backlog = Backlog(QueueLimits(max_queued_seqs=2))
    backlog.update(0, FULL)
    place = backlog.reserve(2)
    assert backlog.num_seqs == 2
    with pytest.raises(QueueFullError, match="2 sequences wait, at most 2 may"):
        backlog.reserve(1)
    with pytest.raises(QueueFullError):
        backlog.enter(1, [5])
    backlog.enter(1, [5, 5], place)
    assert backlog.num_seqs == 2
    place.release()
    assert backlog.num_seqs == 2


def test_a_place_that_is_given_up_is_free_once():
    backlog = Backlog(QueueLimits(max_queued_seqs=1))
    backlog.update(0, FULL)
    first = backlog.reserve(1)
    first.release()
    backlog.reserve(1)
    first.release()
    assert backlog.num_seqs == 1


def test_whoever_has_a_place_is_not_kept_out_by_those_who_came_since():
    backlog = Backlog(QueueLimits(max_queued_seqs=1))
    backlog.update(0, replace(FULL, num_free_slots=1))
    place = backlog.reserve(1)
    backlog.reserve(1)
    backlog.update(0, FULL)  # another took the slot that was free
    with pytest.raises(QueueFullError):
        backlog.enter(1, [5])
    backlog.enter(1, [5], place)


def test_a_place_is_none_for_more_tokens_than_may_wait():
    backlog = Backlog(QueueLimits(max_queued_seqs=9, max_queued_tokens=100))
    backlog.update(0, FULL)
    place = backlog.reserve(1)
    backlog.enter(1, [60])
    with pytest.raises(QueueFullError, match="60 prompt tokens wait and 50 more would"):
        backlog.enter(1, [50], place)
    assert backlog.num_reserved == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_place_leaks_however_requests_go(seed):
    """Of random arrivals, submissions, refusals and ends in any order."""
    chance = random.Random(seed)
    backlog = Backlog(QueueLimits(max_queued_seqs=6, max_queued_tokens=200))
    backlog.update(0, FULL)
    held: list[Place] = []
    sent = 0
    for number in range(1, 300):
        with contextlib.suppress(QueueFullError):
            match chance.choice(("reserve", "reserve", "submit", "release", "report")):
                case "reserve":
                    held.append(backlog.reserve(chance.randint(1, 3)))
                case "submit" if held:
                    place = held.pop(chance.randrange(len(held)))
                    tokens = [chance.randint(1, 90)] * place.num_seqs
                    backlog.enter(number, tokens, place)
                    sent = number
                case "release" if held:
                    chance.choice(held).release()
                case "report":
                    backlog.update(sent, FULL)
        assert backlog.num_reserved == sum(
            place.num_seqs for place in held if place.is_held_in(backlog)
        )
    for place in held:
        place.release()
    backlog.update(sent, FULL)
    assert backlog.num_reserved == backlog.num_seqs == 0


def test_those_who_come_before_count_though_they_have_no_place_yet():
    backlog = Backlog(QueueLimits(max_queued_seqs=3))
    backlog.update(0, IDLE)
    backlog.require_room(num_ahead=4)  # two find free slots
    with pytest.raises(QueueFullError, match="3 sequences wait, at most 3 may"):
        backlog.require_room(num_ahead=5)
    backlog.require_room()
    assert backlog.num_seqs == 0


def test_the_background_waits_beside_what_is_counted_and_needs_no_room():
    backlog = Backlog(QueueLimits(max_queued_seqs=1))
    backlog.update(0, replace(FULL, num_queued_seqs=1))
    place = backlog.reserve(4, is_background=True)
    backlog.enter(1, [5] * 4, place, is_background=True)
    assert backlog.num_seqs == 1
    with pytest.raises(QueueFullError):
        backlog.reserve(1)
