"""How late the event loop is: one timer a second, and by how much it was missed.

The one thing here that looks by itself at intervals, because no event tells of a loop that does
nothing: whatever holds it up (a long text, a stop of the process) shows in the next timer's delay.
"""

from __future__ import annotations

import asyncio
import time

from engine.statistics import Histogram

INTERVAL_S = 1.0
# From what a stream's reader would never notice to what ends connections.
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class LoopLag:
    """Counts delays from its start on; until the loop ends."""

    def __init__(self) -> None:
        self.delays = Histogram(BOUNDS_S)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = 0.0

    def start(self) -> None:
        """Begin on the running loop; without effect where it has begun."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._wait()

    def _wait(self) -> None:
        if self._loop is not None:
            self._due = time.monotonic() + INTERVAL_S
            self._loop.call_later(INTERVAL_S, self._measure)

    def _measure(self) -> None:
        if self._loop is not None:
            self.delays.add(max(0.0, time.monotonic() - self._due))
            self._wait()
