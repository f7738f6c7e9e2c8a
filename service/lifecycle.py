"""Where the process stands between its start and its end, and which requests are open.

One object, touched from the event loop only. What to load and how to listen is known elsewhere.
"""

from __future__ import annotations

import contextlib
import enum
import time
from typing import TYPE_CHECKING

from service.errors import UnavailableError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from service.served_model import ServedModel

RETRY_AFTER_S = 5  # loading and restarting take seconds, not minutes


class Phase(enum.Enum):
    """What the process is doing; the values are what /health/ready says."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """The phase, the model once there is one, and the open requests."""

    def __init__(self) -> None:
        self._phase = Phase.LOADING
        self._served: ServedModel | None = None
        self._started = time.monotonic()
        self._open_requests = 0
        self._work: set[asyncio.Task[object]] = set()

    @property
    def phase(self) -> Phase:
        """Return the phase; a model whose engine died counts as failed."""
        if self._phase is Phase.SERVING and not self._is_engine_alive():
            return Phase.FAILED
        return self._phase

    @property
    def uptime_s(self) -> float:
        """Seconds since the process began."""
        return time.monotonic() - self._started

    @property
    def num_open_requests(self) -> int:
        """Count the requests whose answer is not complete."""
        return self._open_requests

    def begin_serving(self, served: ServedModel) -> None:
        """Take requests from now on, unless the process is about to end."""
        self._served = served
        if self._phase is Phase.LOADING:
            self._phase = Phase.SERVING

    def begin_draining(self) -> None:
        """Take no new requests; open ones go on."""
        self._phase = Phase.DRAINING

    def fail(self) -> None:
        """Note that no model will answer in this process any more."""
        if self._phase is Phase.LOADING:
            self._phase = Phase.FAILED

    def close(self) -> None:
        """Let the model go, if there is one."""
        if self._served is not None:
            self._served.close()

    def require_served(self) -> ServedModel:
        """Return the model, or raise UnavailableError with the reason."""
        phase = self.phase
        if phase is Phase.SERVING and self._served is not None:
            return self._served
        raise UnavailableError(f"the server is {phase.value}", retry_after_s=RETRY_AFTER_S)

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as open until its answer is complete."""
        self._open_requests += 1
        try:
            yield
        finally:
            self._open_requests -= 1

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

    def _is_engine_alive(self) -> bool:
        return self._served is not None and self._served.engine.is_alive
