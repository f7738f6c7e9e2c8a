"""Which requests use a variant, and for how long none has: what unloading waits for."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.server.changes import Changes


class Usage:
    """Counts the open requests of one variant."""

    def __init__(self, changes: Changes) -> None:
        """changes: of the variant; it is told there when the last open request has ended."""
        self._changes = changes
        self.num_requests = 0
        self._last_used = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the last request ended, or since `touch`; 0 while one is open."""
        return 0.0 if self.num_requests else time.monotonic() - self._last_used

    def touch(self) -> None:
        """Count the variant as used just now."""
        self._last_used = time.monotonic()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1
            self.touch()
            if not self.num_requests:
                self._changes.announce()
