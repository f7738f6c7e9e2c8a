"""How many threads compute, as long as other processes take CPUs away. Pure policy.

A team of threads is as slow as the one that waits for a CPU: on two cores, beside one busy process,
two threads decode 16 tokens a second where one decodes 38 (and 55 against 39 alone; the demo,
2026-11). So one is given up where what the waiting costs is more than what it adds. What was
measured is brought by `thread_keeper`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.process.cpu_use import CpuUse

# Of n threads one adds at most 1/n of the speed; two threads are 1.4 to 1.7 times as fast as one,
# so it is less. While steps run, two threads wait 0.01 to 0.06 of the time together alone, and
# 0.52 to 1.0 beside a busy process (two cores, 2026-11).
WORTH_OF_A_THREAD = 0.7
LEAST_WAITED = 0.1  # below this, whatever a thread is worth
# Up to two threads are judged by one reading. Of more, each waits now and then without company
# (0.005 to 0.03 of the time), and what is counted in ticks is off by more the more CPUs there are,
# while one thread is worth less. So shortage is added up over readings: of CPUs, by what others
# took of them, or where nobody is seen of waiting that is more than jitter.
FEW_THREADS = 2
LACKING = 0.4  # CPUs that may be lacking: what is going on anyway, and ticks that are off
JITTER = 0.05  # what each of many threads may wait
SHORTAGE_S = 0.05  # for each thread: CPUs × seconds of it that cost one
SMOOTHED_S = 0.1  # for each thread: over how long CPUs left are averaged
# Waiting says nothing where there were hardly any steps to wait in.
JUDGED_S = 0.1
# CPUs that were taken for less than this count as free: there, two threads gain from trying.
SPARE = 0.3
# CPUs must have been free for so long; longer after each time that it was in vain, as where /proc
# does not show who takes them.
SHORTEST_REST_S, LONGEST_REST_S = 1.0, 32.0
IN_VAIN_S = 2.0  # a thread that is given up again so soon was in vain
IN_VAIN_THREAD_S = 0.5  # the same for each of many threads, which are given up more slowly


class ThreadCount:
    """The number of threads, between one and the most that were allowed."""

    def __init__(self, most: int, now: float) -> None:
        """now: in seconds, by the clock that `take_in` is told."""
        self.number = most
        self._most = most
        self._in_vain_s = max(IN_VAIN_S, IN_VAIN_THREAD_S * most)
        self._rest_s = SHORTEST_REST_S
        self._free_since: float | None = None  # since when more threads would have a CPU
        self._raised_at = now - self._in_vain_s
        self._left: float | None = None  # CPUs that nobody else used, on average of late
        self._shortage = _Shortage()

    def take_in(self, use: CpuUse, *, now: float, wall_s: float, stepped_s: float) -> None:
        """Change the number where what was measured says so.

        wall_s: for how long it was measured. stepped_s: how much of that steps took.
        """
        left = use.num_cpus - use.others_s / wall_s  # CPUs that nobody else used
        average = self._average(left, wall_s)
        if (given := self._left_for_too_many(use, left, stepped_s)) is not None:
            self._give_up(given, now)
        elif min(self._most, math.floor(average + SPARE)) <= self.number:
            self._free_since = None
        else:
            if self._free_since is None:
                self._free_since = now - wall_s
            if now - self._free_since >= self._rest_s:
                self._take_back(average, now)

    def _average(self, left: float, wall_s: float) -> float:
        """Take in how many CPUs were left; return how many are on average. Of two: the last."""
        before = left if self._left is None else self._left
        self._left = before + (left - before) * min(1.0, wall_s / (SMOOTHED_S * self._most))
        return self._left

    def _left_for_too_many(self, use: CpuUse, left: float, stepped_s: float) -> float | None:
        """Return how many CPUs were left where threads wait too long; None where they don't."""
        if self.number == 1 or stepped_s < JUDGED_S:
            return None
        waited = use.waited_s / stepped_s
        if waited <= max(LEAST_WAITED, WORTH_OF_A_THREAD / self.number):
            self._shortage = _Shortage()
            return None
        if self.number <= FEW_THREADS:
            return left
        short = max(self.number - left - LACKING, waited - JITTER * self.number)
        self._shortage.add(short, left, stepped_s)
        if self._shortage.total < SHORTAGE_S * self.number:
            return None
        return self._shortage.left

    def _give_up(self, left: float, now: float) -> None:
        """Take at least one thread away: as many as have no CPU, where that is seen."""
        self.number = max(1, min(self.number - 1, math.floor(left + 0.5)))
        was_in_vain = now - self._raised_at < self._in_vain_s
        self._rest_s = min(2 * self._rest_s, LONGEST_REST_S) if was_in_vain else SHORTEST_REST_S
        self._free_since = None
        self._left = left
        self._shortage = _Shortage()

    def _take_back(self, left: float, now: float) -> None:
        self.number = min(self._most, math.floor(left + SPARE))
        self._raised_at = now
        self._free_since = None
        self._shortage = _Shortage()


class _Shortage:
    """CPUs that threads lacked, times seconds, as long as it is more than they had to spare."""

    def __init__(self) -> None:
        self.total = 0.0
        self._left_s = 0.0  # CPUs left, times seconds
        self._seconds = 0.0

    @property
    def left(self) -> float:
        """How many CPUs were left meanwhile."""
        return self._left_s / self._seconds

    def add(self, short: float, left: float, seconds: float) -> None:
        """Add a reading; short: how many CPUs were lacking, below 0 where some were to spare."""
        self.total += short * seconds
        self._left_s += left * seconds
        self._seconds += seconds
        if self.total <= 0.0:
            self.total = self._left_s = self._seconds = 0.0
