"""Runs an engine for a client at the other end of a socket: commands in, one report a step out.

The thread that runs the loop is the only one that touches the engine. A second one sends a
heartbeat, so that the client can tell a step that takes long from one that never ends, and from a
process that is gone.
"""

from __future__ import annotations

import enum
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from engine.errors import BlockAccountingError, EngineError, EngineStartError, LiveCheckError
from engine.outputs import PromptLogprobs, SequenceStarted, TokenOutput
from engine.process.emergency_exit import EmergencyExit
from engine.process.grammar_reader import GrammarReader
from engine.process.live_check import LiveCheckRunner
from engine.process.rest_memory import RestMemory
from engine.transport.sockets import EngineSockets, EventSocket
from engine.transport.wire import (
    CheckIntegrity,
    EngineFailed,
    Heartbeat,
    IntegrityReport,
    LiveCheckFailed,
    Progress,
    Ready,
    SequenceFailed,
    Shutdown,
    StartFailed,
    StepReport,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.constraint import Constraint
    from engine.encoded import EncodedLoadAttempt, EncodedModelDescription
    from engine.limits import SequenceLimits
    from engine.outputs import StepOutput
    from engine.process.live_check import LiveCheck
    from engine.process.thread_keeper import ThreadKeeper
    from engine.request import SequenceRequest
    from engine.statistics import EngineStatistics

log = structlog.get_logger(__name__)

HEARTBEAT_S = 0.5


class Accounting(Protocol):
    """What an engine counts, and can check."""

    def check(self) -> None:
        """Raise BlockAccountingError where the counts don't add up."""


class SteppedEngine(Protocol):
    """What the loop needs of an engine; `engine.core.Engine` is one."""

    @property
    def limits(self) -> SequenceLimits:
        """What requests must respect."""

    @property
    def scheduler(self) -> Accounting:
        """What counts sequences and blocks."""

    @property
    def has_work(self) -> bool:
        """Whether another step would do anything."""

    def compile(self, request: SequenceRequest) -> Constraint | None:
        """Read a request's grammar, in any thread. Raises InvalidConstraintError."""

    def add(self, request: SequenceRequest, *, constraint: Constraint | None = None) -> object:
        """Queue a sequence. Raises an EngineError if it cannot run."""

    def abort(self, sequence_id: int) -> None:
        """End a sequence without further output; unknown ones are left alone."""

    def step(self) -> list[StepOutput]: ...

    def statistics(self) -> EngineStatistics: ...


class Ending(enum.Enum):
    """How an engine came to its end; the client knows, and the log says so."""

    STOPPED = "stopped"
    NOT_STARTED = "not started"  # for a reason that another try would meet again
    DIED = "died"


def serve(
    folder: Path,
    build: Callable[[ReportProgress], BuiltEngine],
    *,
    fault_exit_code: int | None = None,
) -> Ending:
    """Build an engine and run it for the client that listens in `folder`, until it is to end.

    build: raises EngineStartError for what the client shall read. fault_exit_code: what the process
    is ended with once its device is lost; None where it is not the engine's own.
    """
    sockets = EngineSockets(folder)
    heartbeat = HeartbeatThread(folder)
    emergency_exit = EmergencyExit(sockets, heartbeat, exit_code=fault_exit_code)
    heartbeat.start()
    try:
        built = build(
            lambda phase, percent=None, load_attempt=None: sockets.send(
                Progress(phase, percent, load_attempt)
            )
        )
        limits = built.engine.limits
        sockets.send(Ready(limits.vocab_size, limits.max_model_len, built.model_description))
        EngineLoop(built, sockets, heartbeat, emergency_exit).run()
    except EngineStartError as error:
        sockets.send(StartFailed(str(error), error.start_failure))
        return Ending.NOT_STARTED
    except LiveCheckError as error:
        log.error("live_check_failed", found=str(error))
        sockets.send(LiveCheckFailed(str(error), error.start_failure))
        return Ending.DIED
    except Exception as error:
        emergency_exit.leave_on_fault(error)
        log.exception("engine_failed")
        # Not its message: clients will read this, and it may hold paths and addresses.
        sockets.send(EngineFailed(f"the engine died of {type(error).__name__}"))
        return Ending.DIED
    finally:
        heartbeat.stop()
        sockets.close()
    return Ending.STOPPED


class ReportProgress(Protocol):
    """Tells the client how far loading has come."""

    def __call__(
        self,
        phase: str,
        percent: float | None = None,
        load_attempt: EncodedLoadAttempt | None = None,
    ) -> None:
        """Name the phase; see `Progress`, which carries it."""


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine, and what the client's side shall know of its model."""

    engine: SteppedEngine
    model_description: EncodedModelDescription
    live_check: LiveCheck | None = None  # None where nothing of the model can be checked
    threads: ThreadKeeper | None = None  # None where their number stays as it is


class HeartbeatThread:
    """Tells the client, from its own thread, that the process lives and since when it steps.

    Counted in heartbeats, not by the clock: one that was frozen, as containers can be, has not
    stepped.
    """

    def __init__(self, folder: Path) -> None:
        self._socket = EventSocket(folder)
        self._num_steps = 0
        self._step: int | None = None  # the number of the one under way
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_stopping.set()
        self._thread.join()

    def step_begins(self) -> None:
        self._num_steps += 1
        self._step = self._num_steps

    def step_ends(self) -> None:
        self._step = None

    def _run(self) -> None:
        last: int | None = None
        num_heartbeats = 0  # in one and the same step
        while True:
            step = self._step
            num_heartbeats = num_heartbeats + 1 if step is not None and step == last else 0
            last = step
            self._socket.send(Heartbeat(HEARTBEAT_S * num_heartbeats))
            if self._is_stopping.wait(HEARTBEAT_S):
                break
        self._socket.close()


class EngineLoop:
    """An engine at work for one client."""

    def __init__(
        self,
        built: BuiltEngine,
        sockets: EngineSockets,
        heartbeat: HeartbeatThread,
        emergency_exit: EmergencyExit,
    ) -> None:
        self._emergency_exit = emergency_exit
        self._engine = built.engine
        self._sockets = sockets
        self._heartbeat = heartbeat
        self._grammars = GrammarReader(built.engine.compile, sockets.wake)
        self._live_check = (
            None
            if built.live_check is None
            else LiveCheckRunner(built.live_check, sockets.send, sockets.wake)
        )
        self._threads = built.threads
        self._rest_memory = RestMemory()
        self._work_number = 0
        self._accepted: list[int] = []  # not reported yet
        self._is_stopping = False

    def run(self) -> None:
        """Step while there is work, sleep while there is none, return when it shall stop.

        Raises LiveCheckError where a layer is found to compute wrongly.
        """
        self._report([], [])
        try:
            while self._take_commands():
                self._step()
                self._check_live()
        except Exception as error:
            self._emergency_exit.leave_on_fault(error)  # before what follows, which might hang
            raise
        finally:
            self._grammars.close()
            if self._live_check is not None:
                self._live_check.close()

    def _take_commands(self) -> bool:
        """Carry out the commands that have come; wait for one where nothing else is to be done.

        Returns False once the loop is to end.
        """
        failures: list[SequenceFailed] = []
        has_come = False
        for command in self._sockets.receive(wait_s=self._idle_s()):
            has_come = True
            if isinstance(command, Work):
                failures += self._take_in(command)
            elif isinstance(command, CheckIntegrity):
                self._sockets.send(self._check_integrity())
            elif isinstance(command, Shutdown):
                self._is_stopping = True
        for request, read in self._grammars.take_read():
            refused = self._add(request, read)
            failures += refused
            if not refused:
                self._accepted.append(request.sequence_id)
        if failures or self._accepted or (has_come and not self._engine.has_work):
            self._report([], failures)  # no step will tell of what was taken in, or none soon
        return not self._is_stopping

    def _idle_s(self) -> float | None:
        """Return how long commands may be waited for; None: until one comes."""
        if self._engine.has_work:
            return 0.0
        waits = [self._rest_memory.wait_s()]
        if self._live_check is not None:
            waits.append(self._live_check.wait_s(has_work=False))
        return min((wait for wait in waits if wait is not None), default=None)

    def _take_in(self, work: Work) -> list[SequenceFailed]:
        """Tell the engine what to do; return what it refuses."""
        self._work_number = work.number
        failures: list[SequenceFailed] = []
        for request in work.requests:
            if request.grammar is not None:
                self._grammars.begin(request)
            else:
                failures += self._add(request, None)
        for sequence_id in work.aborted:
            self._grammars.drop(sequence_id)
            if self._live_check is not None:
                self._live_check.drop(sequence_id)
            self._engine.abort(sequence_id)
        return failures

    def _add(
        self, request: SequenceRequest, constraint: Constraint | EngineError | None
    ) -> list[SequenceFailed]:
        """Hand a sequence to the engine; return why it may not run, if so."""
        try:
            if isinstance(constraint, EngineError):
                raise constraint
            self._engine.add(request, constraint=constraint)
        except EngineError as error:
            return [SequenceFailed.of(request.sequence_id, error)]
        if self._live_check is not None:
            self._live_check.begin(request)
        return []

    def _step(self) -> None:
        if not self._engine.has_work:
            self._rest_memory.give_back_if_due()
            return
        self._heartbeat.step_begins()
        began = time.monotonic()
        outputs = self._engine.step()
        step_s = time.monotonic() - began
        self._heartbeat.step_ends()
        self._rest_memory.note_step()
        if self._threads is not None:
            self._threads.note_step(step_s)  # before the report, which says how many there are
        self._report(outputs, [])
        if self._live_check is not None:
            self._live_check.look_at(outputs)

    def _check_live(self) -> None:
        """Have a part of the model checked if its time has come; it waits for no file.

        Products that hang are a hung step.
        """
        if self._live_check is None:
            return
        self._heartbeat.step_begins()
        self._live_check.run_if_due(has_work=self._engine.has_work)
        self._heartbeat.step_ends()

    def _report(self, outputs: list[StepOutput], failures: list[SequenceFailed]) -> None:
        tokens: list[TokenOutput] = []
        prompt_logprobs: list[PromptLogprobs] = []
        started: list[SequenceStarted] = []
        for output in outputs:
            if isinstance(output, TokenOutput):
                tokens.append(output)
            elif isinstance(output, PromptLogprobs):
                prompt_logprobs.append(output)
            elif isinstance(output, SequenceStarted):
                started.append(output)
            else:
                failures.append(SequenceFailed.of(output.sequence_id, output.error))
        self._sockets.send(
            StepReport(
                tokens,
                prompt_logprobs,
                started,
                failures,
                self._work_number,
                self._grammars.counted(self._engine.statistics()),
                self._accepted,
            )
        )
        self._accepted = []

    def _check_integrity(self) -> IntegrityReport:
        problem: str | None = None
        try:
            self._engine.scheduler.check()
        except BlockAccountingError as error:
            log.error("accounting_wrong", problem=str(error))
            problem = str(error)
        return IntegrityReport(not self._engine.has_work, problem)
