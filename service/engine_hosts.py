"""Where an engine runs: in a process of its own, or in a thread of this one.

A host starts one engine, notices when it ends or hangs, and ends it when told to. What to do about
an end is `service.variant`'s to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Protocol

import structlog

from engine.client import EngineClient
from engine.errors import EngineDeadError
from engine.in_thread import EngineThread
from engine.sockets import ClientSockets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from engine.loop import BuiltEngine, TellProgress
    from engine.wire import Progress
    from service.settings import WorkerSettings

    OnProgress: TypeAlias = Callable[[Progress], None]

log = structlog.get_logger(__name__)

STOP_LIMIT_S = 5.0  # from the order to end until the process is killed
CHECK_INTERVAL_S = 0.5  # how often a hang is looked for
WORKER_COMMAND = ("-m", "service.worker_process")
UNLOADED = "the model was unloaded"


class EngineHost(Protocol):
    """One engine, from its start to its end."""

    client: EngineClient

    @property
    def pid(self) -> int:
        """The process that the engine runs in."""

    @property
    def can_be_replaced(self) -> bool:
        """Whether another one may be started after this one's end."""

    async def ended(self) -> str:
        """Wait for the engine's end, or bring it about where it hangs; return how it ended.

        By then every stream that was open has been told.
        """

    async def stop(self) -> None:
        """End the engine after its step, by force where it must be; then `ended` returns."""


class EngineProcess:
    """An engine in a process of its own; made by `start`."""

    can_be_replaced = True

    def __init__(
        self, process: asyncio.subprocess.Process, client: EngineClient, deadline_s: float
    ) -> None:
        self.client = client
        self._process = process
        self._deadline_s = deadline_s
        self._is_stopping = False

    @classmethod
    async def start(
        cls,
        settings: WorkerSettings,
        on_progress: OnProgress,
        *,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> EngineProcess:
        """Start a process that loads a variant; `client` tells when it is ready."""
        sockets = ClientSockets()
        client = EngineClient(sockets, settings.queue_limits, on_progress=on_progress)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # modules come from where ours came from, not from the current folder
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
        )
        told = {"folder": str(sockets.folder), "parent": os.getpid(), "settings": settings.told()}
        _stdin_of(process).write(json.dumps(told).encode() + b"\n")  # and stays open
        return cls(process, client, settings.step_deadline_s)

    @property
    def pid(self) -> int:
        """The engine's process."""
        return self._process.pid

    async def ended(self) -> str:
        """Wait for the process's end, or kill it where its engine hangs; return how it ended."""
        exited = asyncio.create_task(self._process.wait())
        hung = asyncio.create_task(until_hung(self.client, self._deadline_s))
        try:
            await asyncio.wait((exited, hung), return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                self._kill()
            code = await exited
            how = hung.result() if hung.done() else _how_it_ended(code)
        finally:
            hung.cancel()
            _stdin_of(self._process).close()
        return end(self.client, UNLOADED if self._is_stopping else how)

    async def stop(self) -> None:
        """Tell the process to end; kill it where it doesn't."""
        self._is_stopping = True
        if self.client.is_alive and self.client.shut_down():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_LIMIT_S)
        self._kill()  # one that still loads has nothing to lose
        await self._process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class EngineInThread:
    """An engine in a thread of this process; make it in the event loop that will read from it."""

    def __init__(
        self,
        settings: WorkerSettings,
        on_progress: OnProgress,
        build: Callable[[TellProgress], BuiltEngine],
    ) -> None:
        sockets = ClientSockets()
        self.client = EngineClient(sockets, settings.queue_limits, on_progress=on_progress)
        self._thread = EngineThread(sockets.folder, build)
        self._deadline_s = settings.step_deadline_s
        self._is_stopping = False

    @property
    def pid(self) -> int:
        """This process."""
        return os.getpid()

    @property
    def can_be_replaced(self) -> bool:
        """Whether the thread has ended; one that hangs can't be ended."""
        return self._thread.has_ended

    async def ended(self) -> str:
        """Wait until the thread has ended, or its engine hangs; return how it ended."""
        ended = asyncio.create_task(self._thread.ended())
        hung = asyncio.create_task(until_hung(self.client, self._deadline_s))
        try:
            await asyncio.wait((ended, hung), return_when=asyncio.FIRST_COMPLETED)
            how = hung.result() if hung.done() else "the engine ended"
        finally:
            ended.cancel()
            hung.cancel()
        return end(self.client, UNLOADED if self._is_stopping else how)

    async def stop(self) -> None:
        """Tell the engine to end; one that does not is left to the process's end."""
        self._is_stopping = True
        if self.client.shut_down():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._thread.ended(), STOP_LIMIT_S)


def end(client: EngineClient, how: str) -> str:
    """Tell every stream that the engine has ended; return how, in its own words if it had any."""
    client.end(EngineDeadError(how))
    return str(client.death)


async def until_hung(client: EngineClient, deadline_s: float) -> str:
    """Return what shows that an engine hangs, or does not get done with its end."""
    suspicion: str | None = None
    while True:
        await asyncio.sleep(CHECK_INTERVAL_S)
        if client.death is not None:
            await asyncio.sleep(STOP_LIMIT_S)
            return str(client.death)
        suspected, suspicion = suspicion, _suspicion(client, deadline_s)
        # Twice in a row: the first time it may have been this process that stood still.
        if suspected is not None and suspicion is not None:
            return suspicion


def _suspicion(client: EngineClient, deadline_s: float) -> str | None:
    if client.step_s > deadline_s:
        return f"the engine hung: its step took longer than {deadline_s:g} s"
    if time.monotonic() - client.last_heard > deadline_s:
        return f"the engine hung: it was not heard of for {deadline_s:g} s"
    return None


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"the engine's process was ended by {signal.Signals(-code).name}"
    return f"the engine's process ended with code {code}"


def _stdin_of(process: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    if process.stdin is None:
        raise RuntimeError("the process was started without a pipe to its standard input")
    return process.stdin
