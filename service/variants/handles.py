"""Where an engine runs: in a process of its own, or in a thread of this one.

A handle starts one engine, notices when it ends or hangs, and ends it when asked to. What to do
about an end is `service.variants.variant`'s to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

from engine.errors import EngineDeadError, EngineKilledError, EngineStartError
from engine.process.in_thread import EngineThread
from engine.transport.client import EngineClient
from engine.transport.sockets import ClientSockets
from service.settings import ENV_PREFIX
from service.worker_protocol.exit_codes import CANNOT_START

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from engine.process.loop import BuiltEngine, ReportProgress
    from engine.transport.wire import Progress
    from service.settings import WorkerSettings
    from service.worker_protocol.load_attempt import LoadRequest

    OnProgress: TypeAlias = Callable[[Progress], None]

log = structlog.get_logger(__name__)

STOP_LIMIT_S = 5.0  # from the command to end until the process is killed
TRACE_LIMIT_S = 1.0  # for a process that hangs to write down where
CONFIRM_S = 0.5  # from the first sign of a hang to the second, which counts
WORKER_COMMAND = ("-m", "service.worker.process")
UNLOADED = "the model was unloaded"


class EngineHandle(Protocol):
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

        By then every stream that was open has ended.
        """

    async def stop(self) -> None:
        """End the engine after its step, by force where it must be; then `ended` returns."""


class EngineProcess:
    """An engine in a process of its own; made by `start`."""

    can_be_replaced = True

    def __init__(
        self, process: asyncio.subprocess.Process, client: EngineClient, settings: WorkerSettings
    ) -> None:
        self.client = client
        self._process = process
        self._settings = settings
        self._is_stopping = False

    @classmethod
    async def start(
        cls,
        settings: WorkerSettings,
        load_request: LoadRequest,
        on_progress: OnProgress,
        *,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> EngineProcess:
        """Start a process that loads a variant; `client` tells when it is ready."""
        client = EngineClient(ClientSockets(), settings.queue_limits, on_progress=on_progress)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # modules come from where ours came from, not from the current folder
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=sys.stderr.fileno(),
                env=_environment(settings),
            )
        except BaseException:  # cancelled, too: nobody else knows of the client yet
            client.end(EngineDeadError("the engine's process could not be started"))
            raise
        for_worker = {
            "folder": str(client.folder),
            "parent": os.getpid(),
            "settings": settings.for_worker(),
            "load_request": msgspec.to_builtins(load_request),
        }
        _stdin_of(process).write(json.dumps(for_worker).encode() + b"\n")  # and stays open
        return cls(process, client, settings)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> str:
        """Wait for the process's end, or kill it where its engine hangs; return how it ended."""
        exited = asyncio.create_task(self._process.wait())
        hung = asyncio.create_task(until_hung(self.client, self._settings))
        error = EngineDeadError("the engine's end could not be followed")
        try:
            await asyncio.wait((exited, hung), return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                await self._end_by_force(exited)
            error = _how_it_ended(await exited, hung.result() if hung.done() else None)
            if not self._is_stopping:
                await self.client.drain_messages()
        finally:
            hung.cancel()
            _stdin_of(self._process).close()
            how = end(self.client, EngineDeadError(UNLOADED) if self._is_stopping else error)
        return how

    async def stop(self) -> None:
        """Tell the process to end; kill it where it doesn't.

        One that has told of its own end is about to: its last lines, which say why, are being
        written.
        """
        self._is_stopping = True
        has_told_its_end = self.client.death is not None
        if has_told_its_end or (self.client.is_alive and self.client.shut_down()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_LIMIT_S)
        self._kill()  # one that still loads has nothing to lose
        await self._process.wait()

    async def _end_by_force(self, exited: asyncio.Task[int]) -> None:
        """End a process that hangs; give it a moment to write where it stands into the log."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGABRT)
        await asyncio.wait((exited,), timeout=TRACE_LIMIT_S)
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class EngineInThread:
    """An engine in a thread of this process; make it in the event loop that will read from it."""

    def __init__(
        self,
        settings: WorkerSettings,
        on_progress: OnProgress,
        build: Callable[[ReportProgress], BuiltEngine],
    ) -> None:
        self.client = EngineClient(ClientSockets(), settings.queue_limits, on_progress=on_progress)
        self._thread = EngineThread(self.client.folder, build)
        self._settings = settings
        self._is_given_up = asyncio.Event()
        self._is_stopping = False

    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def can_be_replaced(self) -> bool:
        """Whether the thread has ended; one that hangs can't be ended."""
        return self._thread.has_ended

    async def ended(self) -> str:
        """Wait until the thread has ended, or its engine hangs; return how it ended."""
        ended = asyncio.create_task(self._thread.ended())
        hung = asyncio.create_task(until_hung(self.client, self._settings))
        given_up = asyncio.create_task(self._is_given_up.wait())
        waits: tuple[asyncio.Task[Any], ...] = (ended, hung, given_up)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            how = hung.result() if hung.done() else "the engine ended"
            if ended.done() and not self._is_stopping:
                await self.client.drain_messages()
        finally:
            for wait in waits:
                wait.cancel()
        return end(self.client, EngineDeadError(UNLOADED if self._is_stopping else how))

    async def stop(self) -> None:
        """Tell the engine to end; one that does not is left to the process's end."""
        self._is_stopping = True
        self.client.shut_down()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._thread.ended(), STOP_LIMIT_S)
        self._is_given_up.set()


def end(client: EngineClient, error: EngineDeadError) -> str:
    """Tell every stream that the engine has ended; return how, in its own words if it had any."""
    client.end(error)
    return str(client.death)


async def until_hung(client: EngineClient, settings: WorkerSettings) -> str:
    """Return what shows that an engine hangs, or does not get done with its end.

    A deadline that each heartbeat moves: it is looked at when it can have passed at the earliest,
    which of a healthy engine is about once in the time that a step may take.
    """
    suspicion: str | None = None
    while client.death is None:
        wait_s = CONFIRM_S if suspicion is not None else _earliest_s(client, settings)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await client.died()
        suspected, suspicion = suspicion, _suspicion(client, settings)
        # Twice in a row: the first time it may have been this process that stood still.
        if client.death is None and suspected is not None and suspicion is not None:
            return suspicion
    await asyncio.sleep(STOP_LIMIT_S)
    return str(client.death)


def _earliest_s(client: EngineClient, settings: WorkerSettings) -> float:
    """Return in how many seconds an engine can be suspected at the earliest."""
    # The step under way is known by the last heartbeat; if there is none, the next begins now.
    deadlines = [client.last_heard + settings.step_deadline_s - client.step_s]
    if not client.is_alive:
        deadlines.append(client.last_progress + settings.load_deadline_s)
    # Steps are counted in heartbeats, so that a time just before one says nothing new.
    return max(CONFIRM_S, min(deadlines) - time.monotonic())


def _suspicion(client: EngineClient, settings: WorkerSettings) -> str | None:
    step_s, load_s = settings.step_deadline_s, settings.load_deadline_s
    if client.step_s > step_s:
        return f"the engine hung: its step took longer than {step_s:g} s"
    if time.monotonic() - client.last_heard > step_s:
        return f"the engine hung: it was not heard of for {step_s:g} s"
    if not client.is_alive and time.monotonic() - client.last_progress > load_s:
        return f"the engine hung: its loading made no progress for {load_s:g} s"
    return None


def _how_it_ended(code: int, hung: str | None) -> EngineDeadError:
    if hung is not None:
        return EngineDeadError(hung)
    if code == CANNOT_START:  # usually it has said why, and that is what counts
        return EngineStartError("the engine could not be started; its log says why")
    if code == -signal.SIGKILL:
        return EngineKilledError("the engine's process was ended by SIGKILL")
    if code < 0:
        return EngineDeadError(f"the engine's process was ended by {_signal_name(-code)}")
    return EngineDeadError(f"the engine's process ended with code {code}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _environment(settings: WorkerSettings) -> dict[str, str]:
    """Return the environment without our own variables, which hold keys: the engine needs none."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    if settings.thread_wait == "sleep":
        kept["OMP_WAIT_POLICY"] = "passive"  # read once, as the runtime is loaded
    return {**kept, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}


def _stdin_of(process: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    if process.stdin is None:
        raise RuntimeError("the process was started without a pipe to its standard input")
    return process.stdin
