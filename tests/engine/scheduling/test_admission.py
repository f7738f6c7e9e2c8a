from __future__ import annotations

import pytest

from engine.errors import QueueFullError
from engine.scheduling.admission import Admission


def test_sequences_are_bounded():
    admission = Admission(max_queued_seqs=2)
    for _ in range(2):
        admission.check(1)
        admission.enter(1)
    with pytest.raises(QueueFullError, match="2 sequences wait, at most 2 may"):
        admission.check(1)
    admission.leave(1)
    admission.check(1)


def test_prompt_tokens_are_bounded():
    admission = Admission(max_queued_tokens=100)
    admission.enter(60)
    admission.check(40)
    with pytest.raises(QueueFullError, match="60 prompt tokens wait and 41 more would"):
        admission.check(41)


def test_a_prompt_above_the_bound_is_taken_where_nothing_else_waits():
    Admission(max_queued_tokens=100).check(5000)


def test_waiting_is_bounded_by_the_rate_that_was_measured():
    admission = Admission(max_wait_s=2.0)
    admission.enter(10_000)
    admission.check(1)  # nothing was measured yet
    admission.measure(1000, seconds=1.0)
    with pytest.raises(QueueFullError, match=r"takes 10\.0 s to read, at most 2 s may"):
        admission.check(1)


def test_it_says_when_to_come_again():
    """When about half of what waits has been read, within sensible bounds."""
    admission = Admission(max_queued_seqs=1)
    admission.measure(1000, seconds=1.0)
    admission.enter(20_000)
    with pytest.raises(QueueFullError) as refused:
        admission.check(1)
    assert refused.value.retry_after_s == 10
    admission.enter(10_000_000)
    with pytest.raises(QueueFullError) as refused:
        admission.check(1)
    assert refused.value.retry_after_s == 60


def test_the_rate_follows_what_is_measured_smoothly():
    admission = Admission()
    admission.measure(1000, 1.0)
    admission.measure(2000, 1.0)
    assert admission.prefill_tokens_per_s == pytest.approx(1200)
    admission.measure(0, 1.0)
    admission.measure(10, 0.0)
    assert admission.prefill_tokens_per_s == pytest.approx(1200)
