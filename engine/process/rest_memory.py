"""Gives memory that steps have left free back to the system, once an engine has rested for a while.

While it steps it keeps what is freed (`engine.execution.host_memory`), so its memory is that of the
largest step so far, and of what lies between such blocks: some 100 MB more after half an hour of
all kinds of requests. It is given back once after a last step: an engine at rest wakes for nothing
else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.execution.host_memory import return_host_memory

if TYPE_CHECKING:
    from collections.abc import Callable

# The first prompt after it waits for its pages again: 0.1 s of 0.6 (SmolLM2-135M, two cores).
REST_S = 30.0


class RestMemory:
    """Knows when memory is to be given back."""

    def __init__(
        self,
        give_back: Callable[[], None] = return_host_memory,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._give_back = give_back
        self._now = now
        self._due: float | None = None

    def note_step(self) -> None:
        """Know that a step has ended."""
        self._due = self._now() + REST_S

    def wait_s(self) -> float | None:
        """Return how long it takes until memory is given back; None where there is none to give."""
        return None if self._due is None else max(0.0, self._due - self._now())

    def give_back_if_due(self) -> None:
        """Give memory back if the engine has rested for long enough."""
        if self.wait_s() == 0.0:
            self._due = None
            self._give_back()
