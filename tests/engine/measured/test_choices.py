from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from engine.measured.choices import Choices, Source
from tests.engine.measured.fake_clock import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


def never(*_args):
    raise AssertionError("nothing was to be measured")


def logged(choices):
    with capture_logs() as logs:
        choices.finish()
    return {line["event"]: line for line in logs}


def test_the_fastest_call_is_chosen_told_and_known_to_the_next_start(clock, tmp_path):
    choices = Choices(is_measured=True, folder=tmp_path, clock=clock, cpu_clock=clock)
    calls = {"slow": clock.taking(0.004), "fast": clock.taking(0.002)}
    assert choices.fastest("attention", calls) == "fast"
    assert choices.text == "attention: fast"
    line = logged(choices)["kernel_ways_chosen"]
    assert (line["table"], line["source"]) == ("attention: fast", "measured")
    assert line["seconds"] == pytest.approx(0.018)

    again = Choices(is_measured=True, folder=tmp_path, clock=clock, cpu_clock=clock)
    assert again.fastest("attention", {"slow": never, "fast": never}) == "fast"
    assert logged(again)["kernel_ways_chosen"]["source"] == "cached"


def test_another_set_of_calls_is_measured_anew(clock, tmp_path):
    first = Choices(is_measured=True, folder=tmp_path, clock=clock, cpu_clock=clock)
    first.fastest("attention", {"a": clock.taking(0.004), "b": clock.taking(0.002)})
    first.finish()
    again = Choices(is_measured=True, folder=tmp_path, clock=clock, cpu_clock=clock)
    calls = {name: clock.taking(seconds) for name, seconds in (("b", 0.002), ("c", 0.001))}
    assert again.fastest("attention", calls) == "c"


def test_a_kept_choice_that_is_none_of_the_calls_is_made_anew(clock, tmp_path):
    first = Choices(is_measured=True, folder=tmp_path, clock=clock, cpu_clock=clock)
    for strange in ("c", ["a"], None, 7):
        first.keep("attention: a, b", strange)
        first.finish()
        again = Choices(is_measured=True, folder=tmp_path, clock=clock, cpu_clock=clock)
        calls = {"a": clock.taking(0.004), "b": clock.taking(0.002)}
        assert again.fastest("attention", calls) == "b"


def test_fixed_choices_measure_nothing_read_nothing_and_keep_nothing(clock, tmp_path):
    measured = Choices(is_measured=True, folder=tmp_path, clock=clock, cpu_clock=clock)
    measured.fastest("attention", {"a": clock.taking(0.004), "b": clock.taking(0.002)})
    measured.finish()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    fixed = Choices(is_measured=False, folder=tmp_path, clock=clock, cpu_clock=clock)
    assert fixed.fastest("attention", {"a": never, "b": never}) == "a"
    assert fixed.fastest("other", {"a": never, "b": never}) == "a"
    assert logged(fixed)["kernel_ways_chosen"]["source"] == "fixed"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_not_measured_in_time_is_the_first_is_told_and_is_not_kept(clock, tmp_path):
    choices = Choices(is_measured=True, folder=tmp_path, budget_s=1.0, clock=clock, cpu_clock=clock)
    calls = {"a": clock.taking(0.4), "b": clock.taking(0.3)}
    assert choices.fastest("attention", calls) == "a"
    lines = logged(choices)
    assert lines["kernel_ways_chosen"]["source"] == Source.NOT_IN_TIME.value
    assert lines["kernel_ways_not_measured"]["choices"] == ["attention"]
    assert choices.stopwatch.spent_s <= 1.0
    assert list(tmp_path.iterdir()) == []


def test_choices_are_told_in_one_order_whatever_was_chosen_first(clock):
    texts = set()
    for names in (["x", "y"], ["y", "x"]):
        choices = Choices(is_measured=False, clock=clock, cpu_clock=clock)
        for name in names:
            choices.fastest(name, {"a": never})
        texts.add(choices.text)
    assert texts == {"x: a; y: a"}


def test_where_there_was_nothing_to_choose_nothing_is_logged(clock, tmp_path):
    choices = Choices(is_measured=True, folder=tmp_path, clock=clock, cpu_clock=clock)
    assert logged(choices) == {}
    assert (choices.text, list(tmp_path.iterdir())) == ("", [])


def test_what_was_measured_while_others_had_the_cpu_is_taken_but_not_kept(clock, tmp_path):
    cpu = FakeClock()

    def choose(share):
        def call(_seconds):
            def taking():
                clock.now += _seconds
                cpu.now += share * _seconds

            return taking

        choices = Choices(is_measured=True, folder=tmp_path, clock=clock, cpu_clock=cpu)
        assert choices.fastest("attention", {"a": call(0.004), "b": call(0.002)}) == "b"
        return logged(choices)

    lines = choose(0.7)
    assert lines["kernel_ways_chosen"]["source"] == "measured"
    told = lines["kernel_choices_not_kept"]
    assert told["reason"] == "others took 30% of the CPU while ways were measured"
    assert told["log_level"] == "warning"
    lines = choose(0.9)
    assert lines["kernel_ways_chosen"]["source"] == "measured"
    assert "kernel_choices_not_kept" not in lines
    assert choose(0.1)["kernel_ways_chosen"]["source"] == "cached"
