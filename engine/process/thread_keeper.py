"""Has an engine's steps computed by as many threads as there are CPUs for, while it runs.

Between two steps, a few times a second, it reads what the threads got (`cpu_use`), and asks
`thread_count` what follows. Belongs to the thread that steps: OpenMP keeps a number for each.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from engine.process.thread_count import ThreadCount

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.process.cpu_use import CpuUse, CpuUseReader

log = structlog.get_logger(__name__)

# Between two readings, which take 0.1 ms; what is counted comes in pieces of 10 ms.
INTERVAL_S = 0.2
# A neighbour that comes and goes shall not fill the log; what is so in the end is told.
LOG_INTERVAL_S = 30.0


class ThreadKeeper:
    """Changes the number of threads between steps; make it in the thread that steps."""

    def __init__(
        self,
        most: int,
        set_num_threads: Callable[[int], None],
        reader: CpuUseReader,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """most: how many threads there are at first. clock: in seconds."""
        self._most = most
        self._set_num_threads = set_num_threads
        self._reader = reader
        self._clock = clock
        self._count = ThreadCount(most, clock())
        self._last_read = clock()
        self._stepped_s = 0.0  # since then
        self._last_logged = clock() - LOG_INTERVAL_S
        self._logged = most  # the number that the log says last

    def note_step(self, step_s: float) -> None:
        """Take in how long the step took that has just ended; change the number if it is time."""
        self._stepped_s += step_s
        now = self._clock()
        if (wall_s := now - self._last_read) < INTERVAL_S:
            return
        stepped_s, self._stepped_s, self._last_read = self._stepped_s, 0.0, now
        if (use := self._reader.read()) is None:
            return
        before = self._count.number
        self._count.take_in(use, now=now, wall_s=wall_s, stepped_s=stepped_s)
        if self._count.number != before:
            self._set_num_threads(self._count.number)
        self._log_if_due(use, wall_s)

    def _log_if_due(self, use: CpuUse, wall_s: float) -> None:
        """Log the number where the log says another one, now or when it is time again."""
        number, now = self._count.number, self._clock()
        if number == self._logged or now - self._last_logged < LOG_INTERVAL_S:
            return
        self._logged, self._last_logged = number, now
        log.info(
            "threads_changed",
            threads=number,
            of=self._most,
            waited=round(use.waited_s / wall_s, 2),
            others=round(use.others_s / wall_s, 2),
        )
