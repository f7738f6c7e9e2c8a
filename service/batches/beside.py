"""Runs batches for as long as the server's engines run, and puts them back when it stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.batches.attempts import Execute
    from service.batches.keeper import BatchKeeper


class Engines(Protocol):
    """What the server starts and ends."""

    def start(self) -> None: ...

    async def close(self) -> None: ...


class BatchesBeside:
    """The engines, and batches beside them."""

    def __init__(
        self,
        engines: Engines,
        keeper: BatchKeeper,
        execute: Execute,
        until_ending: Callable[[], Awaitable[None]],
    ) -> None:
        """until_ending: returns once no more requests are taken; batches end first of all."""
        self._engines = engines
        self._keeper = keeper
        self._execute = execute
        self._until_ending = until_ending
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the engines, and go on with what batches there are."""
        self._engines.start()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End the engines; batches have been put back, or are now."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._engines.close()

    async def _run(self) -> None:
        try:
            await self._keeper.start(self._execute)
            await self._until_ending()
        finally:
            await self._keeper.close()
