"""How far a variant's loading has come: for its status, and for whoever watches it start.

A bar where the log goes to a terminal, else lines in the log now and then.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from service.terminal import progress_line

if TYPE_CHECKING:
    from engine.transport.wire import Progress

log = structlog.get_logger(__name__)

LOGGED_PERCENT = 10.0
LOGGED_INTERVAL_S = 3.0


class LoadingProgress:
    """The last thing an engine that loads said of itself."""

    def __init__(self, name: str) -> None:
        self.current: Progress | None = None  # None while nothing loads
        self.durations: dict[str, float] = {}  # of each phase of the last load, in seconds
        self._name = name
        self._phase_began = 0.0
        self._logged: Progress | None = None  # the last one in the log
        self._logged_at = 0.0

    def note(self, progress: Progress) -> None:
        """Take in what an engine says; draw it, or log what is news."""
        if (line := progress_line()) is not None:
            line.show(self._name, progress.phase, progress.percent)
        elif self._is_news(progress):
            known = {} if progress.percent is None else {"percent": round(progress.percent)}
            log.info("loading", model=self._name, phase=progress.phase, **known)
            self._logged, self._logged_at = progress, time.monotonic()
        self._measure(progress)
        self.current = progress

    def clear(self) -> None:
        """Note that loading has ended."""
        self._measure(None)
        if (line := progress_line()) is not None:
            line.end(self._name)
        self.current = None

    def _measure(self, progress: Progress | None) -> None:
        """Add up how long each phase takes; what comes back is the same phase."""
        now, last = time.monotonic(), self.current
        if last is None:
            if progress is not None:
                self.durations = {}
        elif progress is None or progress.phase != last.phase:
            took_s = now - self._phase_began
            # What follows a colon are details, such as the branch: names of phases are labels of a
            # metric, and few.
            phase, _, _ = last.phase.partition(": ")
            self.durations[phase] = self.durations.get(phase, 0.0) + took_s
        else:
            return
        self._phase_began = now

    def _is_news(self, progress: Progress) -> bool:
        """Whether the log shall have it: each phase, and of a long one a tenth now and then."""
        last = self._logged
        if last is None or last.phase != progress.phase or self.current is None:
            return True
        if time.monotonic() - self._logged_at < LOGGED_INTERVAL_S:
            return False
        return (progress.percent or 0.0) - (last.percent or 0.0) >= LOGGED_PERCENT
