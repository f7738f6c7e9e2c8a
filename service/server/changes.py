"""Lets tasks wait until something holds, without looking again and again whether it does.

Whoever owns a state announces that it changed; whoever waits looks then, and only then. Unlike
`asyncio.Condition` it has no lock, as all of it is touched from one event loop only, and to
announce needs no `await`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Changes:
    """Where the changes of one thing's state are announced and waited for."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Have this called with each change; it must not raise."""
        self._listeners.append(listener)

    def announce(self) -> None:
        """Have everybody who waits, or listens, look."""
        for listener in self._listeners:
            listener()
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, holds: Callable[[], bool], *, limit_s: float | None = None) -> bool:
        """Wait until this holds, at most so long; return whether it does.

        It is looked at now and after each announcement. Several in one turn of the event loop are
        looked at once: what must not be missed has to stay as it is until then.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not holds():
                    await self._next()
        return holds()

    async def _next(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)
