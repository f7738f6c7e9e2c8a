"""One served variant: loaded, kept running, drained and unloaded.

Decides when an engine is started and when it is given up; how one is started is its source's to
know. Touched from the event loop only.

    UNLOADED ──load──▶ LOADING ──▶ SERVING ◀──load, drain──▶ DRAINING
        ▲                 │           │ the engine's process ends, its step passes the deadline,
        │ unload, or idle │           │ or it is not heard of for as long
    UNLOADING             ▼           ▼
        ▲               FAILED ◀── RESTARTING ──▶ SERVING    how soon: `service.variants.restarts`
        └── from any        after too many, or where another try would end the same way
"""

from __future__ import annotations

import asyncio
import enum
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import structlog

from engine.errors import EngineDeadError, EngineStartError, LiveCheckError
from loaders.errors import LoadError
from service.errors import FallbackError, UnavailableError, VariantStateError
from service.server.changes import Changes
from service.server.lifecycle import RETRY_AFTER_S
from service.text.errors import TextError
from service.variants.loading_progress import LoadingProgress
from service.variants.restarts import RestartPolicy
from service.variants.usage import Usage
from service.worker_protocol.load_attempt import StartFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from engine.statistics import EngineStatistics, LiveCheckStatistics
    from engine.transport.wire import Progress
    from loaders.reports.self_test import SelfTestReport
    from loaders.reports.suspicion import Suspicion
    from service.serving.served_model import ServedModel
    from service.variants.handles import EngineHandle

log = structlog.get_logger(__name__)

FAILED_REST_S = 30.0  # until a request has one that failed tried again


class VariantState(enum.Enum):
    """What a variant is doing; the values are what clients see."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    SERVING = "serving"
    RESTARTING = "restarting"  # its engine ended; the next one waits or loads
    DRAINING = "draining"  # loaded, takes no new work
    UNLOADING = "unloading"
    FAILED = "failed"  # given up


# What a variant is in only for a while.
ON_ITS_WAY = frozenset({VariantState.LOADING, VariantState.RESTARTING, VariantState.UNLOADING})


class VariantSource(Protocol):
    """Where a variant's engines come from."""

    @property
    def variant(self) -> str:
        """A repository and branch, or a folder."""

    @property
    def degraded(self) -> str | None:
        """What was given up so that it could be loaded; None where nothing was."""

    @property
    def suspicions(self) -> tuple[Suspicion, ...]:
        """Reasons to doubt that the files of what was loaded last were read right."""

    def reset(self) -> None:
        """Begin a new life of the variant: what earlier ones gave up is tried again."""

    async def start(self, on_progress: Callable[[Progress], None]) -> EngineHandle: ...

    async def wait_ready(self, handle: EngineHandle) -> ServedModel:
        """Wait until a started engine serves.

        Raises EngineDeadError, EngineStartError where another try would end the same way; LoadError
        or TextError for files that cannot be read; FallbackError where the next engine will try
        another way.
        """

    def fall_back(self, error: LiveCheckError) -> str:
        """Choose what the next engine does without; say so, and why the one before it ended."""

    async def close(self) -> None:
        """Let go of what was kept from one engine for the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRules:
    """How a variant is kept running; from its settings."""

    is_on_demand: bool = False
    is_required: bool = True
    idle_unload_s: float | None = None
    max_restarts: int = 5
    aliases: tuple[str, ...] = ()  # names beside its own that requests may send


@dataclass(frozen=True, slots=True)
class VariantStatus:
    """How a variant stands, for people and routers."""

    name: str
    variant: str  # what it is: a repository and branch, a folder
    created: int  # when it was first named, seconds since 1970
    state: VariantState
    phase: str | None  # of loading, while it loads
    percent: float | None  # of the phase
    reason: str | None  # why it failed, or was started again last
    degraded: str | None  # what was given up so that it could be loaded
    num_restarts: int
    num_requests: int  # open ones
    pid: int | None
    statistics: EngineStatistics | None
    self_test: SelfTestReport | None = None  # the last one that was made
    live_check: LiveCheckStatistics | None = None  # what goes on with it while serving
    suspicions: tuple[Suspicion, ...] = ()  # reasons to doubt that its files were read right
    aliases: tuple[str, ...] = ()  # names beside its own that requests may send
    load_phases: Mapping[str, float] = field(default_factory=dict)  # of the last load, in seconds

    @property
    def suspect(self) -> list[str] | None:
        """Those reasons in words, one a check; None where there are none."""
        return [str(suspicion) for suspicion in self.suspicions] or None


class ServedVariant:
    """A variant's state, and the task that keeps it there."""

    def __init__(self, name: str, source: VariantSource, rules: VariantRules) -> None:
        self.name = name
        self.rules = rules
        self.changes = Changes()  # of the state, and of whether requests are open
        self._state = VariantState.UNLOADED
        self._entered = time.monotonic()  # that state
        self._created = int(time.time())
        self._is_on_demand = rules.is_on_demand  # until somebody unloads it by hand
        self.has_failed = False  # when it was tried last
        self.is_drained = False  # then it takes no new work, nor is loaded by a request
        self._source = source
        self._handle: EngineHandle | None = None
        self._served: ServedModel | None = None
        self._progress = LoadingProgress(name)
        self._self_test: SelfTestReport | None = None
        self._reason: str | None = None
        self._num_restarts = 0
        self._usage = Usage(self.changes)
        self._task: asyncio.Task[None] | None = None
        self._unloading: asyncio.Task[None] | None = None

    # ── what others see ─────────────────────────────────────────────────────────────────────────

    @property
    def state(self) -> VariantState:
        """What the variant is doing; one whose engine is dying does not serve any more."""
        is_served = self._served is not None and self._served.engine.is_alive
        is_dying = self._state is VariantState.SERVING and not is_served
        return VariantState.RESTARTING if is_dying else self._state

    @property
    def status(self) -> VariantStatus:
        progress = self._progress.current
        return VariantStatus(
            name=self.name,
            variant=self._source.variant,
            created=self._created,
            state=self.state,
            phase=None if progress is None else progress.phase,
            percent=None if progress is None else progress.percent,
            reason=self._reason,
            degraded=self._source.degraded,
            num_restarts=self._num_restarts,
            num_requests=self._usage.num_requests,
            pid=None if self._handle is None else self._handle.pid,
            statistics=None if self._served is None else self._served.engine.statistics,
            self_test=self._self_test,
            suspicions=self._source.suspicions,
            live_check=None if self._served is None else self._served.engine.live_check,
            aliases=self.rules.aliases,
            load_phases=self._progress.durations,
        )

    @property
    def served(self) -> ServedModel | None:
        """The model, while it is loaded."""
        return self._served

    @property
    def comes_on_demand(self) -> bool:
        """Whether requests have it loaded."""
        return self._is_on_demand

    @property
    def waits_for_demand(self) -> bool:
        """Whether the next request has it loaded.

        One that failed is tried again after a while: memory that it lacked may be free by then.
        """
        if not self._is_on_demand or self.is_drained:
            return False
        if self._state is VariantState.FAILED:
            return time.monotonic() - self._entered >= FAILED_REST_S
        return self._state is VariantState.UNLOADED

    def require_served(self) -> ServedModel:
        """Return the model, or raise UnavailableError with what the variant does instead."""
        if self.state is VariantState.SERVING and self._served is not None:
            return self._served
        raise UnavailableError(
            _why_unavailable(self.name, self.state, self._progress.current),
            retry_after_s=RETRY_AFTER_S,
        )

    def in_use(self) -> AbstractContextManager[None]:
        """Count a request as open; the variant is not unloaded meanwhile, as long as it may be."""
        return self._usage.request()

    # ── what it shall do ────────────────────────────────────────────────────────────────────────

    def load(self) -> None:
        """Begin to load, or take work again after a drain; without effect on one that is on.

        Raises VariantStateError for one that is being unloaded.
        """
        if self._unloading is not None:
            raise VariantStateError(f"{self.name} is being unloaded; load it once that is done")
        self._is_on_demand = self.rules.is_on_demand
        self.is_drained = False
        if self.state is VariantState.DRAINING:
            self._enter(VariantState.SERVING)
        else:
            self.load_on_demand()

    def load_on_demand(self) -> None:
        """Begin to load what is not loaded; leaves a drain as it is."""
        if self.state in (VariantState.UNLOADED, VariantState.FAILED):
            self._enter(VariantState.LOADING)
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._note_end)

    def drain(self) -> None:
        """Take no new work until `load`, nor be loaded by a request."""
        self.is_drained = True
        if self.state is VariantState.SERVING:
            self._enter(VariantState.DRAINING)

    def unload(self, *, drain_limit_s: float, for_good: bool) -> asyncio.Task[None]:
        """Take no new work, let open requests end for a while, then end the engine.

        for_good: no request loads it again.
        """
        if for_good:
            self._is_on_demand = False
        if self._unloading is None:
            self._enter(VariantState.UNLOADING)
            self._unloading = asyncio.create_task(self._unload(drain_limit_s))
        return self._unloading

    # ── its life ────────────────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        """Keep the variant running; end its engine if cancelled, and keep nothing in any case."""
        try:
            await self._run_engines()
            log.error("variant_failed", model=self.name, reason=self._reason)
        finally:
            await self._source.close()
        self._enter(VariantState.FAILED)

    async def _run_engines(self) -> None:
        """Start engines, one after the other, until there is no hope."""
        self._source.reset()
        restarts = RestartPolicy(self.rules.max_restarts)
        while True:
            try:
                served_s = await self._run_engine(is_first=restarts.is_first_engine)
            except FallbackError as error:
                self._reason = str(error)
                log.warning("degraded", model=self.name, reason=self._reason)
                continue
            if served_s is None:
                return
            delay_s = restarts.delay_after(served_s)
            if delay_s is None:
                given_up = f"given up after {self.rules.max_restarts} restarts"
                self._reason = f"{self._reason}; {given_up}"
                return
            log.warning("engine_restarting", model=self.name, reason=self._reason, in_s=delay_s)
            self._num_restarts += 1
            self._enter(VariantState.RESTARTING)
            await asyncio.sleep(delay_s)

    async def _run_engine(self, *, is_first: bool) -> float | None:
        """Run one engine to its end; return how long it served, None if no other may follow.

        is_first: since the variant began to load, so that none has ever got that far.
        """
        try:
            handle = await self._source.start(self._progress.note)
        except OSError as error:  # no memory, no descriptors, no room for another process
            self._reason = f"the engine's process could not be started: {error.strerror}"
            return 0.0
        self._handle = handle
        began: float | None = None
        ended = asyncio.create_task(handle.ended())
        try:
            self._served = await self._source.wait_ready(handle)
            self._self_test = self._served.self_test
            began = time.monotonic()
            self._enter(VariantState.DRAINING if self.is_drained else VariantState.SERVING)
            log.info("ready", model=self.name, pid=handle.pid)
            await self._until_ended_or_idle(ended)
        except EngineDeadError as error:
            self._reason = str(error)
            if isinstance(error, EngineStartError):
                self._self_test = _self_test_of(error)
                if is_first:
                    return None
        except (LoadError, TextError, OSError) as error:
            self._reason = str(error)
            if not isinstance(error, OSError):  # a want that may pass, of what reads the texts
                return None
        finally:
            self._served = self._handle = None
            self.changes.announce()  # unloading need not wait for requests any more
            how = await _end(handle, ended)
        if began is None:
            return 0.0
        self._reason = how
        log.error("engine_ended", model=self.name, reason=how)
        if isinstance(death := handle.client.death, LiveCheckError):
            self._reason, self._self_test = self._source.fall_back(death), _self_test_of(death)
        return time.monotonic() - began if handle.can_be_replaced else None

    async def _until_ended_or_idle(self, ended: asyncio.Task[str]) -> None:
        """Wait for the engine's end; have the variant unloaded if nobody wants it any more."""
        limit_s = self.rules.idle_unload_s
        self._usage.touch()
        if limit_s is not None:
            # Each time until the limit can have passed at the earliest.
            while not ended.done() and (idle_s := self._usage.idle_s) < limit_s:
                await asyncio.wait((ended,), timeout=limit_s - idle_s)
            if not ended.done():
                log.info("idle_unload", model=self.name)
                self.unload(drain_limit_s=limit_s, for_good=False)
        await asyncio.wait((ended,))

    async def _unload(self, drain_limit_s: float) -> None:
        try:
            await self.changes.until(
                lambda: self._served is None or not self._usage.num_requests, limit_s=drain_limit_s
            )
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
        finally:
            self._reason = self._self_test = None
            self._unloading = None
            self._enter(VariantState.UNLOADED)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Give the variant up where its task failed for a reason that nobody foresaw."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("variant_failed", model=self.name, exc_info=error)
            self._reason = f"a fault of the server's own: {type(error).__name__}"
            self._enter(VariantState.FAILED)

    def _enter(self, state: VariantState) -> None:
        if state is not self._state:
            log.info(state.value, model=self.name)
        self._state = state
        self._entered = time.monotonic()
        self.has_failed = state is VariantState.FAILED or (self.has_failed and state in ON_ITS_WAY)
        if state not in ON_ITS_WAY:
            self._progress.clear()
        self.changes.announce()


def names_of(variant: ServedVariant) -> tuple[str, ...]:
    """Return all names by which requests may ask for a variant, its own first."""
    return (variant.name, *variant.rules.aliases)


async def _end(handle: EngineHandle, ended: asyncio.Task[str]) -> str:
    """End an engine, and return how it ended; a first cancellation does not leave it half done.

    An unloading that waits for requests cancels as soon as nothing serves, be it that the engine
    has just died and is being ended. Whoever cancels twice waits for nothing more.
    """
    task = asyncio.current_task()
    stopping = asyncio.create_task(handle.stop())
    try:
        await asyncio.shield(stopping)
    except asyncio.CancelledError:
        if task is not None and task.cancelling() == 1:
            await stopping
        raise
    return await ended


def _self_test_of(error: EngineStartError | LiveCheckError) -> SelfTestReport | None:
    failure = StartFailure.of(error)
    return None if failure is None else failure.self_test


def _why_unavailable(name: str, state: VariantState, progress: Progress | None) -> str:
    if state is VariantState.FAILED:
        return f"{name} has failed; whoever runs this server finds the reason in its log"
    phase = "" if progress is None else f" ({progress.phase})"
    return f"{name} is {state.value}{phase}"
