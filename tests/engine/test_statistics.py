from __future__ import annotations

import pytest

from engine.statistics import Histogram, Latencies, TokenTimes


def test_a_value_counts_below_the_bound_that_it_equals_and_above_all_in_the_last_place():
    histogram = Histogram([1, 2])
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.add(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.total == 14.0


def test_what_two_have_counted_adds_up_where_their_bounds_are_the_same():
    one, other = Histogram([1]), Histogram([1])
    one.add(0.5)
    other.add(3.0)
    one.merge(other)
    assert (one.counts, one.total) == ([1, 1], 3.5)
    assert other.counts == [0, 1]
    with pytest.raises(ValueError, match="bounds"):
        one.merge(Histogram([2]))


def test_tokens_that_come_together_are_one_gap_from_those_before():
    latencies, times = Latencies(), TokenTimes(10.0)
    for now in (10.5, 10.5, 10.7, 10.7, 10.7, 11.3):
        latencies.note_token(times, now)
    assert (times.first_at, times.last_at) == (10.5, 11.3)
    assert times.longest_gap_s == pytest.approx(0.6)
    assert latencies.first_token.total == pytest.approx(0.5)
    assert sum(latencies.first_token.counts) == 1
    assert latencies.between_tokens.total == pytest.approx(0.8)
    assert sum(latencies.between_tokens.counts) == 2
