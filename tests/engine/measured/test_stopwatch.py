from __future__ import annotations

import pytest

from engine.measured.stopwatch import OutOfTimeError, Stopwatch
from tests.engine.measured.fake_clock import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


def test_of_each_call_the_quickest_counts_as_others_on_the_machine_only_lengthen_them(clock):
    calls = {"one": clock.taking(0.9, 0.004, 0.003, 0.02), "other": clock.taking(0.004)}
    seconds = Stopwatch(10, clock).least_seconds(calls)
    assert seconds == pytest.approx({"one": 0.003, "other": 0.004})


def test_calls_take_turns_and_each_gets_another_number(clock):
    told = []

    def noting(name):
        def call(turn):
            told.append((name, turn))
            clock.now += 0.001

        return call

    watch = Stopwatch(10, clock)
    watch.least_seconds({"one": noting("one"), "other": noting("other")})
    assert [name for name, _ in told[:4]] == ["one", "other", "one", "other"]
    watch.least_seconds({"one": noting("one")})
    assert len({turn for _, turn in told}) == len(told)


def test_calls_that_are_clearly_apart_or_long_are_made_fewer_times(clock):
    def number_of_calls(*durations):
        counts = [0] * len(durations)

        def counting(index, seconds):
            def call(_turn):
                counts[index] += 1
                clock.now += seconds

            return call

        calls = {str(i): counting(i, seconds) for i, seconds in enumerate(durations)}
        Stopwatch(100, clock).least_seconds(calls)
        assert len(set(counts)) == 1
        return counts[0]

    assert number_of_calls(0.0001, 0.00011) == 12
    assert number_of_calls(0.0001, 0.0002) == 3
    assert number_of_calls(0.010, 0.011) == 3
    assert number_of_calls(0.2, 0.21) == 2


def test_no_call_is_begun_when_time_is_over_or_would_be(clock):
    watch = Stopwatch(1.0, clock)
    calls = []

    def call(turn):
        calls.append(turn)
        clock.now += 0.3

    with pytest.raises(OutOfTimeError):
        watch.least_seconds({"one": call}, foreseen_s=1.1)
    assert calls == []
    watch.least_seconds({"one": call})  # twice, as it is long
    assert watch.spent_s == pytest.approx(0.6)
    with pytest.raises(OutOfTimeError):
        watch.least_seconds({"one": call})
    assert watch.spent_s == pytest.approx(0.9)  # a second one would have ended at 1.2


def test_the_share_in_which_the_thread_had_a_cpu_is_that_of_calls_alone(clock):
    cpu = FakeClock()
    watch = Stopwatch(10, clock, cpu)
    assert (watch.measured_s, watch.cpu_share) == (0, 1)

    def call(_turn):
        clock.now += 0.1
        cpu.now += 0.06

    watch.least_seconds({"one": call})
    clock.now += 5
    assert (watch.measured_s, watch.cpu_share) == pytest.approx((0.2, 0.6))
