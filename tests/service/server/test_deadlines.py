"""One timer for many deadlines, on a clock of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from service.server.deadlines import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Clock:
    """The part of an event loop that a deadline asks for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(when, call))
        return self.timers[-1]

    def go_to(self, now: float) -> None:
        while due := [t for t in self.timers if not t.is_cancelled and t.when <= now]:
            timer = min(due, key=lambda timer: timer.when)
            self.timers.remove(timer)
            self.now = timer.when
            timer.call()
        self.now = now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def passed() -> list[float]:
    return []


@pytest.fixture
def deadline(clock: Clock, passed: list[float]) -> Deadline:
    return Deadline(clock, lambda: passed.append(clock.now))  # type: ignore[arg-type]


def test_deadline_passes_once(clock, deadline, passed):
    deadline.set(5)
    clock.go_to(4.9)
    assert passed == []
    clock.go_to(100)
    assert passed == [5]


def test_a_later_one_takes_no_timer_of_its_own(clock, deadline, passed):
    deadline.set(5)
    clock.go_to(3)
    deadline.set(5)
    assert len(clock.timers) == 1
    clock.go_to(100)
    assert passed == [8]


def test_an_earlier_one_does_not_wait_for_the_later(clock, deadline, passed):
    deadline.set(30)
    clock.go_to(1)
    deadline.set(5)
    clock.go_to(100)
    assert passed == [6]


def test_a_cleared_one_does_not_pass_and_may_be_set_again(clock, deadline, passed):
    deadline.set(5)
    deadline.clear()
    clock.go_to(50)
    assert passed == []
    deadline.set(5)
    clock.go_to(100)
    assert passed == [55]


def test_a_closed_one_leaves_no_timer(clock, deadline, passed):
    deadline.set(5)
    deadline.close()
    assert all(timer.is_cancelled for timer in clock.timers)
    clock.go_to(100)
    assert passed == []
