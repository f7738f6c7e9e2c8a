"""How far a download has come: bytes, rate and what is left of it, reported now and then.

Several threads add to one meter; whoever listens is called by one of them at a time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_WINDOW_S = 10.0  # over which the rate is taken
_STEP_S = 0.1  # pieces that came together count as one
_REPORT_EVERY_S = 0.25  # or at every percent


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """One moment of a download."""

    num_bytes_done: int  # what an earlier, interrupted download left included
    num_bytes_total: int
    bytes_per_s: float
    eta_s: float | None  # None while nothing comes

    @property
    def percent(self) -> float:
        """Say how much is done, from 0 to 100."""
        if not self.num_bytes_total:
            return 100.0
        return min(100.0, 100 * self.num_bytes_done / self.num_bytes_total)


class ProgressMeter:
    """Counts the bytes of one download."""

    def __init__(
        self,
        num_bytes_total: int,
        on_progress: Callable[[DownloadProgress], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = num_bytes_total
        self._on_progress = on_progress
        self._clock = clock
        self._done = 0
        self._received: deque[tuple[float, int]] = deque([(clock(), 0)])  # time, bytes until then
        self._reported_at = (clock(), -1.0)  # time, percent
        self._lock = threading.Lock()

    def found(self, num_bytes: int) -> None:
        """Count what was here already; negative where it turned out to be of no use."""
        with self._lock:
            self._done += num_bytes
            self._report_at_intervals()

    def received(self, num_bytes: int) -> None:
        """Count what came from the hub."""
        with self._lock:
            self._done += num_bytes
            now, until = self._clock(), self._received[-1][1] + num_bytes
            if len(self._received) > 1 and now - self._received[-2][0] < _STEP_S:
                self._received.pop()
            self._received.append((now, until))
            while len(self._received) > 2 and self._received[1][0] < now - _WINDOW_S:
                self._received.popleft()
            self._report_at_intervals()

    def _report_at_intervals(self) -> None:
        now, progress = self._clock(), self._progress()
        reported_at, percent = self._reported_at
        is_whole = self._done == self._total
        if is_whole or now - reported_at >= _REPORT_EVERY_S or progress.percent >= percent + 1:
            self._reported_at = (now, progress.percent)
            self._on_progress(progress)

    def _progress(self) -> DownloadProgress:
        (first, before), (last, until) = self._received[0], self._received[-1]
        rate = (until - before) / (last - first) if last > first else 0.0
        left = max(0, self._total - self._done)
        return DownloadProgress(
            num_bytes_done=self._done,
            num_bytes_total=self._total,
            bytes_per_s=rate,
            eta_s=left / rate if rate else None,
        )
