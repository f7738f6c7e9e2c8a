"""Has files removed once their time is over: one timer, set for the next of them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import DatabaseError

from service.batches.disk_faults import LONGEST_WAIT_S, reason_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger(__name__)

# The clock may be set, and a machine may sleep, while a timer runs.
LONGEST_TIMER_S = 3600.0


class Expiry:
    """The timer."""

    def __init__(self, remove: Callable[[], Awaitable[float | None]]) -> None:
        """remove: removes what is due, and returns when the next file's time is over, if any's."""
        self._remove = remove
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_asked_again = False

    def look(self) -> None:
        """Remove what is due, and set the timer anew; to be called when files came or went."""
        self._is_asked_again = True
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Remove nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            wait_s = await self._remove_due()
        finally:
            self._task = None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if wait_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(wait_s, self.look)

    async def _remove_due(self) -> float | None:
        """Return after how many seconds to look again; None before files come or go.

        No fault ends it, as then nothing would be removed before files come or go.
        """
        next_at: float | None = None
        while self._is_asked_again:
            self._is_asked_again = False
            try:
                next_at = await self._remove()
            except (OSError, DatabaseError) as error:
                log.warning("expired_files_stay", reason=reason_of(error), retry_s=LONGEST_WAIT_S)
                return LONGEST_WAIT_S
            except Exception as error:  # ours: told with its traceback
                reason = type(error).__name__
                log.exception("expired_files_stay", reason=reason, retry_s=LONGEST_WAIT_S)
                return LONGEST_WAIT_S
        if next_at is None:
            return None
        return min(max(0.0, next_at - time.time()), LONGEST_TIMER_S)
