"""Opens the folder of files and batches as soon as the disk, or another server, lets it be.

So batches go on by themselves after a rolling restart, in which the next server starts before the
one that has the folder has ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from service.batches.disk_faults import longer_wait
from service.batches.errors import FolderTakenError, StorageError
from service.batches.folder import TAKEN_WAIT_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

log = structlog.get_logger(__name__)


class Reopening:
    """The attempts to open one folder."""

    def __init__(self, folder: Path, open_it: Callable[[], Awaitable[object]]) -> None:
        """open_it: raises FolderTakenError or StorageError; without effect once it is open."""
        self._folder = folder
        self._open = open_it
        self._task: asyncio.Task[None] | None = None
        self._told: str | None = None  # why it cannot be opened

    @property
    def is_waiting(self) -> bool:
        """Whether it could not be opened, and is tried again."""
        return self._task is not None and not self._task.done()

    async def begin(self) -> None:
        """Open it now, else by and by."""
        wait_s = await self._try(0.0)
        if wait_s is not None:
            self._task = asyncio.create_task(self._try_again(wait_s))

    async def close(self) -> None:
        """Try no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _try_again(self, wait_s: float | None) -> None:
        while wait_s is not None:
            await asyncio.sleep(wait_s)
            wait_s = await self._try(wait_s)
        log.info("batches_available")

    async def _try(self, waited_s: float) -> float | None:
        """Return after how long to try again; None once it is open."""
        try:
            await self._open()
        except FolderTakenError as error:
            self._tell(error, log.warning)
            return TAKEN_WAIT_S
        except Exception as error:  # ours too: nothing would run before the next start
            self._tell(error, log.error if isinstance(error, StorageError) else log.exception)
            return longer_wait(waited_s)
        return None

    def _tell(self, error: Exception, tell: Callable[..., object]) -> None:
        if self._told == str(error):
            return
        self._told = str(error)
        outcome = "it is tried again by itself"
        tell("batches_unavailable", reason=self._told, folder=str(self._folder), outcome=outcome)
