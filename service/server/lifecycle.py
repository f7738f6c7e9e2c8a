"""Where the process stands between its start and its end, and which requests are open.

One object, touched from the event loop only; who waits for a change of it is woken by that change.
How the models stand is `service.variants.supervisor`'s.
"""

from __future__ import annotations

import contextlib
import enum
import time
from typing import TYPE_CHECKING, Protocol

from service.errors import UnavailableError
from service.server.changes import Changes

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

RETRY_AFTER_S = 5  # loading and restarting take seconds, not minutes


class Phase(enum.Enum):
    """What the process is doing; the values are what /health/ready says."""

    LOADING = "loading"
    SERVING = "serving"
    RESTARTING = "restarting"  # an engine ended, and its successor is on its way
    DRAINING = "draining"
    UNLOADED = "unloaded"  # somebody unloaded what is required, or all that there is
    EMPTY = "empty"  # somebody removed every variant
    FAILED = "failed"


class Readiness(Protocol):
    """How the models stand; `service.variants.supervisor.Supervisor` tells."""

    changes: Changes  # of what follows

    @property
    def phase(self) -> Phase:
        """Whether what is required can be answered."""

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing can answer any more, and nothing will by itself."""


class Lifecycle:
    """The phase, and the open requests."""

    def __init__(self, models: Readiness) -> None:
        self._models = models
        self._changes = Changes()
        models.changes.listen(self._changes.announce)
        self._is_draining = False
        self._started = time.monotonic()
        self._open_requests = 0
        self._work: set[asyncio.Task[object]] = set()

    @property
    def phase(self) -> Phase:
        """Return the phase: that of the models, until the process is about to end."""
        return Phase.DRAINING if self._is_draining else self._models.phase

    @property
    def is_hopeless(self) -> bool:
        """Whether no model will answer in this process any more."""
        return self._models.is_hopeless

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def num_open_requests(self) -> int:
        """Count the requests whose answer is not complete."""
        return self._open_requests

    def begin_draining(self) -> None:
        """Take no new requests; open ones go on."""
        self._is_draining = True
        self._changes.announce()

    def require_open(self) -> None:
        """Raise UnavailableError where no new requests are taken."""
        if self._is_draining:
            raise UnavailableError("the server is draining", retry_after_s=RETRY_AFTER_S)

    async def until_ending(self) -> None:
        """Wait until the process is to end: it was told so, or no model can answer any more."""
        await self._changes.until(lambda: self._is_draining or self.is_hopeless)

    async def until_answered(self, limit_s: float) -> bool:
        """Wait until no request is open, at most so long; return whether none is."""
        return await self._changes.until(lambda: not self._open_requests, limit_s=limit_s)

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as open until its answer is complete."""
        self._open_requests += 1
        try:
            yield
        finally:
            self._open_requests -= 1
            if not self._open_requests:
                self._changes.announce()

    @contextlib.contextmanager
    def work(self, task: asyncio.Task[object]) -> Iterator[None]:
        """Let `cut_off` cancel this task while it generates."""
        self._work.add(task)
        try:
            yield
        finally:
            self._work.discard(task)

    def cut_off(self) -> int:
        """Cancel what still generates; return how many tasks that were."""
        for task in self._work:
            task.cancel()
        return len(self._work)
