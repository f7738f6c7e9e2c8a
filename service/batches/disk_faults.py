"""Tries again what a fault of the disk stops: a full one, one that is gone, a database in use.

Waits grow, so that a disk that stays as it is costs little; nothing else of the batch is begun
meanwhile that needs the disk's answer, and what was answered is held until it can be kept.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog
from sqlalchemy.exc import DatabaseError, OperationalError

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

T = TypeVar("T")

DISK_FAULTS = (OSError, OperationalError)
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0


def reason_of(error: OSError | DatabaseError) -> str:
    """Return what the disk, or SQLite, says of it, without paths, statements and their values."""
    if isinstance(error, DatabaseError):
        return str(error.orig)
    return error.strerror or type(error).__name__


def longer_wait(waited_s: float) -> float:
    """Return after how many seconds to try again, where that was in vain after so many; 0: once."""
    return min(max(2 * waited_s, FIRST_WAIT_S), LONGEST_WAIT_S)


class InThread(Protocol):
    """Runs what takes the disk's time."""

    async def __call__(self, work: Callable[[], T]) -> T:
        """Return what `work` returns."""


class _StoppedError(OSError):
    """It was not tried, as something before it has failed."""


class Persistence:
    """What one batch wants of the disk, tried until it is well."""

    def __init__(self, batch_id: str) -> None:
        self._batch_id = batch_id
        self._num_stopped = 0
        self._is_told = False
        self._wait_s = 0.0  # before the next attempt
        self._turn = asyncio.Lock()

    @property
    def is_stopped(self) -> bool:
        """Whether something waits for the disk to be well."""
        return self._num_stopped > 0

    async def until_done(self, work: Callable[[], T], run: InThread) -> T:
        """Return what work returns the first time that no fault of the disk stops it.

        work: may be done again, whatever became of it before. run: does it in a thread.
        """
        try:
            result = await run(lambda: self._unless_stopped(work))
        except DISK_FAULTS as error:
            if not isinstance(error, _StoppedError):
                self._note(error)
            self._num_stopped += 1
            try:
                async with self._turn:  # one tries for all of the batch
                    result = await self._try_again(work, run)
            finally:
                self._num_stopped -= 1
        if self._is_told and not self.is_stopped:
            self._is_told = False
            log.info("batch_goes_on", batch=self._batch_id)
        return result

    def _unless_stopped(self, work: Callable[[], T]) -> T:
        """Do it, in a thread; not what came into its queue before another work of it failed.

        SQLite takes its time over a database that is locked, in which callers wait for the thread.
        """
        if self.is_stopped:
            raise _StoppedError
        return work()

    async def _try_again(self, work: Callable[[], T], run: InThread) -> T:
        while True:
            await asyncio.sleep(self._wait_s)
            try:
                result = await run(work)
            except DISK_FAULTS as error:
                self._note(error)
            else:
                self._wait_s = 0.0
                return result

    def _note(self, error: OSError | OperationalError) -> None:
        self._wait_s = longer_wait(self._wait_s)
        if not self._is_told:
            self._is_told = True
            log.error(
                "batch_stopped",
                batch=self._batch_id,
                reason=reason_of(error),
                outcome="it goes on by itself once the disk is well",
            )
