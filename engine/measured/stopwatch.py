"""Measures calls against each other, for no longer than a given time in all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Calls take turns, and of each the quickest counts: what else the machine does lengthens some, and
# shortens none. The first ones make ready what libraries keep, and find caches cold.
_LEAST_ROUNDS = 3
_MOST_ROUNDS = 12
_LONG_ENOUGH_S = 0.015
# Where one call is so many times as quick as each other one, more rounds would say the same.
_CLEAR = 1.5
# Calls of this length are cut short least by the others' caches and most by the budget.
_FEW_ROUNDS = 2
_LONG_CALL_S = 0.03


class OutOfTimeError(Exception):
    """There is no time left to measure in."""


class Stopwatch:
    """A budget of seconds, and the clock that it is counted by."""

    def __init__(
        self,
        budget_s: float,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """The budget counts from now on. cpu_clock: seconds that this thread has had a CPU."""
        self._clock, self._cpu_clock = clock, cpu_clock
        self._measured_s = self._cpu_s = 0.0
        self._started = clock()
        self._budget_s = budget_s
        self._turn = 0

    @property
    def spent_s(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._started

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.spent_s >= self._budget_s

    @property
    def measured_s(self) -> float:
        """Seconds that were spent in calls."""
        return self._measured_s

    @property
    def cpu_share(self) -> float:
        """Of these, the share in which the thread had a CPU: 1 but for what others took.

        A thread that waits for its helpers does so awake, unless others take their CPUs for long.
        """
        return self._cpu_s / self._measured_s if self._measured_s else 1.0

    def least_seconds(
        self, calls: Mapping[str, Callable[[int], object]], *, foreseen_s: float = 0.0
    ) -> dict[str, float]:
        """Return the seconds of each call at its quickest, by name.

        Each call gets a number that no other gets, so that it can take other data than those
        before. foreseen_s: what one of them may take; one that would end past the budget is not
        begun. Raises OutOfTimeError.
        """
        least: dict[str, float] = {}
        spent, rounds = 0.0, 0
        while not _is_enough(least, spent, rounds):
            for name, call in calls.items():
                seconds = self._time(call, least.get(name, foreseen_s))
                least[name] = min(seconds, least.get(name, seconds))
                spent += seconds
            rounds += 1
        return least

    def _time(self, call: Callable[[int], object], foreseen_s: float) -> float:
        begun = self._clock()
        if begun - self._started + foreseen_s >= self._budget_s:
            raise OutOfTimeError
        self._turn += 1
        cpu_begun = self._cpu_clock()
        call(self._turn)
        seconds = self._clock() - begun
        self._measured_s += seconds
        self._cpu_s += self._cpu_clock() - cpu_begun
        return seconds


def _is_enough(least: Mapping[str, float], spent: float, rounds: int) -> bool:
    if rounds < _FEW_ROUNDS:
        return False
    if rounds >= _MOST_ROUNDS:
        return True
    if rounds < _LEAST_ROUNDS:
        return min(least.values()) >= _LONG_CALL_S
    first, *others = sorted(least.values())
    is_clear = bool(others) and others[0] >= _CLEAR * first
    return is_clear or spent >= _LONG_ENOUGH_S * len(least)
