"""uvicorn's server, woken by what happens and not by a clock, and ended without cancelling tasks.

uvicorn looks ten times a second whether it is to end and what the date is, waits for its
connections' end in the same way, and then cancels the tasks of those that are left, each of which
writes a traceback. Here nothing is armed while nothing happens; connections that are left are
dropped, and their tasks, told that the client is gone, end by themselves. When to end is
`service.server.uvicorn_server`'s to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, TypeAlias, cast

import structlog
import uvicorn
from uvicorn.server import ServerState

from service.server.changes import Changes

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from starlette.types import ASGIApp
    from uvicorn.server import Protocols

    from service.server.front import Front
    from service.server.http_protocol import HttpProtocol

    Headers: TypeAlias = list[tuple[bytes, bytes]]

log = structlog.get_logger(__name__)

CLOSING_LIMIT_S = 1  # for an other end to take some of what has been answered; else it is dropped
LETTING_GO_LIMIT_S = 0.2  # for tasks whose connections were dropped


class HttpServer(uvicorn.Server):
    """Serves until `end`; without signal handlers, as uvicorn would end with the signal, not 0."""

    server_state: _State

    def __init__(self, app: ASGIApp, front: Front) -> None:
        config = front.config(app)
        super().__init__(config)
        self.server_state = _State(config)
        self._front = front
        self._is_ending = asyncio.Event()
        self._readers_limit_s = 0.0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._front.accept(self, sockets or [])

    def end(self, readers_limit_s: float = 0.0) -> None:
        """Take no more connections and close those that there are; then `serve` returns.

        readers_limit_s: how long those may go on whose answers are still being read.
        """
        self._readers_limit_s = readers_limit_s
        self._is_ending.set()

    async def main_loop(self) -> None:
        await self._is_ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close what is at rest at once, the rest when it is answered and read."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        state = self.server_state
        self._front.connections.drop_all_but(state.connections)  # those that only say hello yet
        for connection in list(state.connections):
            connection.shutdown()
        await self._until_closed()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=LETTING_GO_LIMIT_S)

    async def _until_closed(self) -> None:
        """Wait for all connections; drop those whose other end takes nothing, in the end all."""
        state, readers_until = self.server_state, time.monotonic() + self._readers_limit_s
        while state.connections:
            untaken = state.connections.count_untaken()
            if await state.changes.until(lambda: not state.connections, limit_s=CLOSING_LIMIT_S):
                return
            is_over = time.monotonic() >= readers_until
            dropped = [
                connection
                for connection, num_bytes in state.connections.count_untaken().items()
                if is_over or num_bytes >= untaken.get(connection, 0)
            ]
            if dropped:
                log.warning("connections_dropped", connections=len(dropped))
            for connection in dropped:
                connection.transport.abort()
            if is_over:
                return


class _State(ServerState):
    """What uvicorn's connections share; tells when one is gone, and the date when it is asked."""

    connections: _Connections

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__()
        self.changes = Changes()  # of the connections
        self.connections = _Connections(self.changes)
        self._config = config
        self._dated_s = 0  # when the headers were made, in seconds since 1970
        self._headers: Headers = []

    @property
    def default_headers(self) -> Headers:
        """Those of every answer, with the date of now."""
        now_s = int(time.time())
        if now_s != self._dated_s:
            date = [(b"date", formatdate(now_s, usegmt=True).encode())]
            self._headers = (
                date if self._config.date_header else []
            ) + self._config.encoded_headers
            self._dated_s = now_s
        return self._headers

    @default_headers.setter
    def default_headers(self, _: Headers) -> None:
        """Leave them: uvicorn's own clock sets them once."""


class _Connections(set["Protocols"]):
    """Open connections; they take themselves out when they are lost."""

    def __init__(self, changes: Changes) -> None:
        super().__init__()
        self._changes = changes

    def count_untaken(self) -> dict[Protocols, int]:
        """Count what the other end of each has not taken yet, in bytes."""
        return {one: cast("HttpProtocol", one).unsent.num_untaken for one in self}

    def discard(self, connection: object) -> None:
        super().discard(connection)
        self._changes.announce()
