"""An engine in a thread of the client's own process: for tests, benchmarks and small machines.

Everything else is as with a process of its own: the same sockets, messages and loop.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from engine.errors import EngineDeadError
from engine.process.loop import serve
from engine.transport.backlog import QueueLimits
from engine.transport.client import EngineClient
from engine.transport.sockets import ClientSockets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from engine.process.loop import BuiltEngine, ReportProgress


class EngineThread:
    """Builds an engine and runs it, from the moment it is made; make it in the client's loop."""

    def __init__(self, folder: Path, build: Callable[[ReportProgress], BuiltEngine]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(
            target=self._run, args=(folder, build), name="engine", daemon=True
        )
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    async def ended(self) -> None:
        await self._ended.wait()

    def _run(self, folder: Path, build: Callable[[ReportProgress], BuiltEngine]) -> None:
        try:
            serve(folder, build)
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)


@asynccontextmanager
async def running_engine(
    build: Callable[[ReportProgress], BuiltEngine], limits: QueueLimits | None = None
) -> AsyncIterator[EngineClient]:
    """Run an engine in a thread; give its client once it takes work."""
    sockets = ClientSockets()
    client = EngineClient(sockets, limits or QueueLimits())
    thread = EngineThread(sockets.folder, build)
    try:
        await client.ready()
        yield client
    finally:
        if client.shut_down() or client.death is not None:  # it is ending in either case
            await thread.ended()
            await client.drain_messages()
        client.end(EngineDeadError("the engine was stopped"))
