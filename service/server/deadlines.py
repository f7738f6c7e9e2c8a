"""A connection's deadline: one timer, moved rarely.

What is due later than the timer goes off is only written down, and looked at when it does: so
that a request that comes whole, and its answer, touch no timer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Deadline:
    """Calls back once the time that was last set has passed, unless it was cleared since."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_passed: Callable[[], None]) -> None:
        self._loop = loop
        self._on_passed: Callable[[], None] | None = on_passed  # None: it is closed
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._goes_off = 0.0  # when the timer does

    def set(self, seconds: float) -> None:
        """Have it pass so many seconds from now."""
        self._due = self._loop.time() + seconds
        if self._timer is None or self._goes_off > self._due:
            self._start_timer(self._due)

    def clear(self) -> None:
        """Have none for now."""
        self._due = None

    def close(self) -> None:
        """Never call back again, nor keep whom."""
        self._due = self._on_passed = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._goes_off = when
        self._timer = self._loop.call_at(when, self._go_off)

    def _go_off(self) -> None:
        self._timer = None
        if self._due is None:
            return
        # The loop's clock counts milliseconds: what is due within one is due.
        if self._due - self._loop.time() > 0.001:
            self._start_timer(self._due)
            return
        self._due = None
        if self._on_passed is not None:
            self._on_passed()
