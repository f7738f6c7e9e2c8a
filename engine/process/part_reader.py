"""Reads what a live check compares, in a thread of its own: storage may stall, and no step waits.

One part at a time, and none before it is asked for: no more than that is held.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# How long an ending engine waits for what is being read; a stalled read is left behind.
CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What came of a part, and what it cost."""

    result: T | Exception
    started: float  # by the clock
    wall_s: float
    cpu_s: float


class PartReader(Generic[T]):
    """One part being read, or none; belongs to one thread, but for the reading."""

    def __init__(
        self, read: Callable[[], T], wake: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        """wake: called in another thread when a part has been read."""
        self._read = read
        self._wake = wake
        self._clock = clock
        self._orders: SimpleQueue[bool] = SimpleQueue()  # True for a part, False to end
        self._reading: Reading[T] | None = None
        self._is_asked = self._is_closed = False
        # A daemon: a process must be able to end while a read never does.
        self._thread = threading.Thread(target=self._run, name="live-check", daemon=True)

    @property
    def is_free(self) -> bool:
        """Whether nothing was asked for that was not taken."""
        return not self._is_asked

    @property
    def is_read(self) -> bool:
        """Whether there is something to take."""
        return self._reading is not None

    def begin(self) -> None:
        """Have the next part read; the reader must be free."""
        if self._thread.ident is None:
            self._thread.start()
        self._is_asked = True
        self._orders.put(True)

    def take(self) -> Reading[T]:
        """Return what was read; something must have been."""
        reading = self._reading
        if reading is None:
            raise RuntimeError("nothing has been read; ask `is_read` first")
        self._reading, self._is_asked = None, False
        return reading

    def close(self) -> None:
        """Read no more; wait a moment for what is being read."""
        self._is_closed = True
        if self._thread.ident is not None:
            self._orders.put(False)
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while self._orders.get() and not self._is_closed:
            started, cpu_started = self._clock(), time.thread_time()
            result: T | Exception
            try:
                result = self._read()
            except Exception as error:  # raised where it is taken
                result = error
            wall_s, cpu_s = self._clock() - started, time.thread_time() - cpu_started
            self._reading = Reading(result, started, wall_s, cpu_s)
            del result  # what was taken is not to be held until the next is read
            if not self._is_closed:
                self._wake()
