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
LEAST_WAITED = 0.1  # what many threads wait together without any company
# Waiting says nothing where there were hardly any steps to wait in.
JUDGED_S = 0.1
# CPUs that were taken for less than this count as free: there, two threads gain from trying.
SPARE = 0.3
# CPUs must have been free for so long; longer after each time that it was in vain, as where /proc
# does not show who takes them.
SHORTEST_REST_S, LONGEST_REST_S = 1.0, 32.0
IN_VAIN_S = 2.0  # a thread that is given up again so soon was in vain


class ThreadCount:
    """The number of threads, between one and the most that were allowed."""

    def __init__(self, most: int, now: float) -> None:
        """now: in seconds, by the clock that `take_in` is told."""
        self.number = most
        self._most = most
        self._rest_s = SHORTEST_REST_S
        self._free_since: float | None = None  # since when more threads would have a CPU
        self._raised_at = now - IN_VAIN_S

    def take_in(self, use: CpuUse, *, now: float, wall_s: float, stepped_s: float) -> None:
        """Change the number where what was measured says so.

        wall_s: for how long it was measured. stepped_s: how much of that steps took.
        """
        left = use.num_cpus - use.others_s / wall_s  # CPUs that nobody else used
        if self._waits_too_long(use, stepped_s):
            self._give_up(left, now)
        elif min(self._most, math.floor(left + SPARE)) <= self.number:
            self._free_since = None
        else:
            if self._free_since is None:
                self._free_since = now - wall_s
            if now - self._free_since >= self._rest_s:
                self._take_back(left, now)

    def _waits_too_long(self, use: CpuUse, stepped_s: float) -> bool:
        if self.number == 1 or stepped_s < JUDGED_S:
            return False
        return use.waited_s / stepped_s > max(LEAST_WAITED, WORTH_OF_A_THREAD / self.number)

    def _give_up(self, left: float, now: float) -> None:
        """Take at least one thread away: as many as have no CPU, where that is seen."""
        self.number = max(1, min(self.number - 1, math.floor(left + 0.5)))
        was_in_vain = now - self._raised_at < IN_VAIN_S
        self._rest_s = min(2 * self._rest_s, LONGEST_REST_S) if was_in_vain else SHORTEST_REST_S
        self._free_since = None

    def _take_back(self, left: float, now: float) -> None:
        self.number = min(self._most, math.floor(left + SPARE))
        self._raised_at = now
        self._free_since = None
