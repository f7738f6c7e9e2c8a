"""Listens, has the variants loaded beside it, and ends well: the life of the API process.

The address is bound before anything is loaded, so that health can be asked from the first moment,
and a port that is taken is known at once. Signals and draining are ours: uvicorn would refuse new
connections at once (health included), and wait for ever on a reader that has stalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, NoReturn, Protocol

import structlog
import uvloop

from service.errors import BindError
from service.server.front import Front
from service.server.http_server import HttpServer

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from service.server.lifecycle import Lifecycle

log = structlog.get_logger(__name__)

ERROR_EVENTS_S = 0.5  # for the error events of requests that were cut off
ENDING_LIMIT_S = 1  # for engines in the middle of a step, or of loading
FAILED = 1  # exit code where no model can answer any more


class Engines(Protocol):
    """What is started and ended with the server: `service.variants.supervisor.Supervisor`."""

    def start(self) -> None: ...

    async def close(self) -> None: ...


class Server:
    """Serves one application on one socket until it is told to stop."""

    def __init__(
        self,
        app: ASGIApp,
        lifecycle: Lifecycle,
        engines: Engines,
        *,
        drain_limit_s: float,
        front: Front | None = None,
    ) -> None:
        self._lifecycle = lifecycle
        self._engines = engines
        self._drain_limit_s = drain_limit_s
        self._exit_code = 0
        self._is_stopping = False
        front = front or Front()
        self._connections = front.connections
        self._http = HttpServer(app, front)

    def run(self, listener: socket.socket) -> NoReturn:
        """Serve until a signal or a failure; end the process with its exit code."""
        asyncio.Runner(loop_factory=uvloop.new_event_loop).run(self._serve(listener))
        # Neither by closing the loop nor by returning to the interpreter's own end, which would
        # wait for threads: an engine in one of them may hang, or still load.
        logging.shutdown()  # writes what waits to be written
        os._exit(self._exit_code)

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        self._engines.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._http.serve(sockets=[listener]))
            self._http.end(await self._until_drained())
            with contextlib.suppress(TimeoutError):  # they end with this process at the latest
                await asyncio.wait_for(self._engines.close(), ENDING_LIMIT_S)

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._is_stopping:
            log.warning("stopping_at_once", signal=name)
            logging.shutdown()
            os._exit(128 + number)
        self._is_stopping = True
        self._lifecycle.begin_draining()
        num_incomplete = self._connections.close_incomplete()
        log.info(
            "stopping",
            signal=name,
            open_requests=self._lifecycle.num_open_requests,
            incomplete_requests=num_incomplete,
            drain_limit_s=self._drain_limit_s,
            hint="a second signal stops at once",
        )

    async def _until_drained(self) -> float:
        """Wait for a reason to end, then for open requests; return what is left of the limit, s."""
        await self._lifecycle.until_ending()
        limit_s = self._drain_limit_s
        if not self._is_stopping:
            log.error("no_model_can_answer", outcome="this process ends")
            self._exit_code, limit_s = FAILED, ERROR_EVENTS_S
            self._connections.close_incomplete()
        began = time.monotonic()
        await self._drain(limit_s)
        return max(0.0, began + limit_s - time.monotonic())

    async def _drain(self, limit_s: float) -> None:
        """Let open requests end by themselves for a while, then cut them off.

        All of them have come whole; the others were refused with the signal.
        """
        if await self._lifecycle.until_answered(limit_s):
            return
        num_cut = self._lifecycle.cut_off()
        log.warning("requests_cut_off", requests=num_cut, limit_s=limit_s)
        await self._lifecycle.until_answered(ERROR_EVENTS_S)


def listen(host: str, port: int, *, stall_limit_s: float) -> socket.socket:
    """Bind an address; port 0 takes a free one. Raises BindError.

    stall_limit_s: connections whose other end takes no data for so long are dropped by the kernel
    (Linux), which is the only way to be rid of a reader that holds its window shut.
    """
    listener: socket.socket | None = None
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            limit_ms = int(stall_limit_s * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise BindError(
            f"cannot listen on {host} port {port}: {error.strerror};"
            " choose another --host or --port"
        ) from error
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the address that a browser on this machine would use."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
