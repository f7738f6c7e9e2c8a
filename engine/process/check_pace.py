"""When the live check may look at its next part. Pure policy.

An idle engine is checked round after round, at a modest share of a core. A busy one is checked
between two steps, seldom: others wait meanwhile. What looks like a broken kernel has a full round
made at once, still part by part, so that running requests go on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A round of an idle engine takes this long, or as long as it does within its share of the time.
IDLE_ROUND_S = 12.0
IDLE_SHARE = 0.15  # of a core
# Gaps between two requests of one client are shorter; nobody is to find a check in them.
IDLE_AFTER_S = 0.5
# Half of what a busy engine may give; a part of a large model takes longer than one of the demo.
BUSY_SHARE = 0.005
SHORTEST_REST_S, LONGEST_REST_S = 0.1, 300.0  # between two parts, whatever they cost
# Parts of a round that is made at once go on so long between two steps, and no longer.
URGENT_SLICE_S = 0.05
# So often a round is made at once, whoever provokes it: this many times as long as it took.
URGENT_REST = 9.0


class CheckPace:
    """Knows what was checked when, and what it cost."""

    def __init__(self, num_parts: int, clock: Callable[[], float] = time.monotonic) -> None:
        """num_parts: of a round. clock: in seconds."""
        self._num_parts = num_parts
        self._clock = clock
        self._last_step = self._last_start = clock()
        self._last_s = self._last_cpu_s = 0.0  # what the last part took
        self._num_urgent = 0  # parts left of a round that is made at once
        self._urgent_s = 0.0  # what its parts have taken
        self._rests_until = clock()  # from such rounds
        self._is_asked = False  # for another one, meanwhile

    def note_step(self) -> None:
        """Take in that the engine has just stepped."""
        self._last_step = self._clock()

    def note_part(self, started: float, wall_s: float, cpu_s: float) -> None:
        """Take in since when a part was read, how long it took, and what of it counts when idle."""
        self._last_start, self._last_s, self._last_cpu_s = started, wall_s, cpu_s
        if self._num_urgent:
            self._num_urgent -= 1
            self._urgent_s += self._last_s
            if not self._num_urgent:
                self._rests_until = self._clock() + URGENT_REST * self._urgent_s

    def hurry(self) -> bool:
        """Have a full round made at once; False where one is under way, or was a moment ago."""
        if self._num_urgent or self._clock() < self._rests_until:
            self._is_asked = not self._num_urgent
            return False
        self._num_urgent, self._urgent_s, self._is_asked = self._num_parts, 0.0, False
        return True

    @property
    def slice_s(self) -> float:
        """For how long parts may follow each other before others have their turn."""
        return URGENT_SLICE_S if self._num_urgent else 0.0

    def wait_s(self, *, has_work: bool) -> float:
        """Return the seconds until the next part is due, as long as nothing changes."""
        if self._is_asked and self._clock() >= self._rests_until:
            self.hurry()
        return max(0.0, self._due(has_work=has_work) - self._clock())

    def _due(self, *, has_work: bool) -> float:
        if self._num_urgent:
            return self._last_start
        rest_s = max(SHORTEST_REST_S, min(self._last_s / BUSY_SHARE, LONGEST_REST_S))
        busy = self._last_start + rest_s
        if has_work:
            return busy
        pause_s = max(IDLE_ROUND_S / self._num_parts, self._last_cpu_s / IDLE_SHARE)
        return min(busy, max(self._last_step + IDLE_AFTER_S, self._last_start + pause_s))
